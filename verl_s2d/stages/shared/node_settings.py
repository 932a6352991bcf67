"""Read a node's settings and operations together."""

from __future__ import annotations

from typing import Any

from verl_s2d.platforms.template_date import DEFAULT, VARIABLE
from verl_s2d.workflow.graph import Node


def merged_verl(node: Node) -> dict[str, Any]:
    """Merge a node's decisive and operational verl overrides, without those that its stage sets itself."""
    return {**node.settings["verl"], **node.operations["verl"]}


def template_environment(node: Node) -> dict[str, str]:
    """Set the date that chat templates print."""
    return {VARIABLE: node.settings.get("template_date", DEFAULT)}


def verifier_argument(node: Node) -> str:
    """Name the verifier as `verifiers` and evaluation take it: `name`, or `/absolute/file.py:function`."""
    name: str = node.settings["verifier"]
    external = node.externals.get("verifier")
    return f"{external.location}:{name}" if external else name
