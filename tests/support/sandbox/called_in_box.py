"""A function that tests call in a sandbox: it evaluates text."""

from __future__ import annotations

from typing import Any


def measure(text: str) -> dict[str, Any]:
    return {"value": eval(text), "length": len(text)}
