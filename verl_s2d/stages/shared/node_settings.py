"""Reading what a node's settings and operations say together."""

from __future__ import annotations

from typing import Any

from verl_s2d.workflow.graph import Node


def merged_verl(node: Node) -> dict[str, Any]:
    """Merge the verl overrides of a node that its stage does not set itself, decisive and operational."""
    return {**node.settings["verl"], **node.operations["verl"]}


def verifier_argument(node: Node) -> str:
    """Name the verifier as `verifiers` and evaluation take it: `name`, or `/absolute/file.py:function`."""
    name: str = node.settings["verifier"]
    external = node.externals.get("verifier")
    return f"{external.location}:{name}" if external else name
