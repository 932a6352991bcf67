"""Read a node's settings and operations together."""

from __future__ import annotations

from typing import Any

from verl_s2d.workflow.graph import Node


def merged_verl(node: Node) -> dict[str, Any]:
    """Merge a node's decisive and operational verl overrides, without those that its stage sets itself."""
    return {**node.settings["verl"], **node.operations["verl"]}


def verifier_argument(node: Node) -> str:
    """Name the verifier as `verifiers` and evaluation take it: `name`, or `/absolute/file.py:function`."""
    name: str = node.settings["verifier"]
    external = node.externals.get("verifier")
    return f"{external.location}:{name}" if external else name
