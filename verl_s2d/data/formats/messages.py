"""Straighten chat messages as files hold them: parts joined to text, fields that Arrow filled with null dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def is_messages(value: Any) -> bool:
    """Tell whether a value is a list of messages {role, content, ...}."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def plain_messages(value: Any) -> Any:
    """Straighten a list of messages, as a list or as the JSON text of one; any other value is returned as it is.

    Content that is a list of text parts ([{"type": "text", "text": ...}]) becomes the text of all parts. Content with
    other parts (images) is left for the reader to refuse. Fields that are null are dropped: a chat template tells an
    absent field from a null one.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            read = json.loads(value)
        except ValueError:
            return value
        return plain_messages(read) if is_messages(read) else value
    return [_plain(message) for message in value] if is_messages(value) else value


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in message.items() if value is not None}
    parts = kept.get("content")
    if isinstance(parts, list) and all(_is_text(part) for part in parts):
        kept["content"] = "".join(part if isinstance(part, str) else part["text"] for part in parts)
    return kept


def _is_text(part: Any) -> bool:
    if isinstance(part, Mapping):
        return part.get("type", "text") == "text" and isinstance(part.get("text"), str)
    return isinstance(part, str)
