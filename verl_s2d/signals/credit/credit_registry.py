"""Find credits by type: a name from this folder, or file.py:Name for a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.signals import credit
from verl_s2d.signals.credit.credit import Credit
from verl_s2d.signals.type_registry import TypeRegistry

_REGISTRY = TypeRegistry(credit, Credit, (Credit,), "credit")


def known_credits() -> Mapping[str, type[Credit]]:
    """Import the files of this folder and return their credits: type -> class."""
    return _REGISTRY.known


def read_credit(section: Mapping[str, Any], *, key: str) -> Credit:
    """Read a section {type: rlsd, lambda: 0.5}.

    Args:
        key: dotted key of the section, for messages.

    Raises:
        UserError: the type is missing or unknown, a key or value is not the credit's, or a user's file does not load.
    """
    return _REGISTRY.read(section, default="", key=key)
