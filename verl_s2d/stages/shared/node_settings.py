"""Read a node's settings and operations together, and write those that several stages share."""

from __future__ import annotations

import json
from typing import Any

from verl_s2d.platforms.template_date import DEFAULT, VARIABLE
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Context

VERIFIER = "verifier"
"""Role of the file that holds a recipe's own verifier."""
_FUNCTION = "reward.custom_reward_function"
_VERIFIER = "Set `verifier:` of the recipe. Stages 1 and 3 call it, and stage 2b with a signal that reads scores."
VERIFIER_RESERVED = {
    f"{_FUNCTION}.path": _VERIFIER,
    f"{_FUNCTION}.name": _VERIFIER,
    f"{_FUNCTION}.reward_kwargs": _VERIFIER,
    "custom_reward_function.path": _VERIFIER,
}


def merged_verl(node: Node) -> dict[str, Any]:
    """Merge a node's decisive and operational verl overrides, without those that its stage sets itself."""
    return {**node.settings["verl"], **node.operations["verl"]}


def template_environment(node: Node) -> dict[str, str]:
    """Set the date that chat templates print."""
    return {VARIABLE: node.settings.get("template_date", DEFAULT)}


def verifier_argument(node: Node) -> str:
    """Name the verifier as `verifiers` and evaluation take it: `name`, `/absolute/file.py:function`, or JSON of these.

    A file is an input of the node under the role VERIFIER; with verifiers by data source, under VERIFIER.<data source>.
    """
    name: str = node.settings["verifier"]
    if VERIFIER in node.externals:
        return f"{node.externals[VERIFIER].location}:{name}"
    own = {role.partition(".")[2]: x.location for role, x in node.externals.items() if role.startswith(f"{VERIFIER}.")}
    if not own:
        return name
    chosen = json.loads(name)
    return json.dumps(chosen | {source: f"{file}:{chosen[source]}" for source, file in own.items()}, sort_keys=True)


def verifier_overrides(node: Node, context: Context) -> dict[str, Any]:
    """Make the recipe's verifier verl's reward function, with every call in the node's ledger."""
    # In JSON this is the same text, in which OmegaConf replaces nothing.
    verifier = verifier_argument(node).replace("${", r"\u0024{")
    return {
        f"{_FUNCTION}.path": "pkg://verl_s2d.verifiers.ledgered",
        f"{_FUNCTION}.name": "compute_score",
        f"+{_FUNCTION}.reward_kwargs.verifier": verifier,
        f"+{_FUNCTION}.reward_kwargs.ledger_dir": str(context.directory(node) / "verifier"),
    }
