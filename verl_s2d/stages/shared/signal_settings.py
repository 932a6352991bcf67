"""Carry the signal of stages 2a and 2b from a recipe into a node, and from a node into a command."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.recipe.servers import Servers
from verl_s2d.signals.credit.credit import Credit
from verl_s2d.signals.signal import AdvantageSignal, Ask, LossSignal, Signal
from verl_s2d.signals.signal_registry import PLACED, check_placement, read_signal, types_of
from verl_s2d.stages.shared.training_stage import MODEL, TRUST
from verl_s2d.teachers.router import TEACHER
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Context, model_location, trusts_remote_code

SERVES = "serves"
"""Setting of stages with several teachers: role -> the data sources that it serves."""
SIGNAL = "signal"
"""Role of the file that holds a signal of a recipe's own."""
RESERVED = {
    "s2d.signal": "Set `signal:` of the stage.",
    "s2d.models": MODEL,
    "s2d.teacher.path": MODEL,
    "s2d.teacher.trust_remote_code": TRUST,
}


def beside_recipe(section: Mapping[str, Any], directory: Path) -> Mapping[str, Any]:
    """Locate the file of a section's type, file.py:Name, beside the recipe; other sections are returned as they are."""
    file, colon, name = str(section.get("type", "")).rpartition(":")
    return {**section, "type": f"{directory / file}:{name}"} if colon else section


def signal_of_recipe(section: Mapping[str, Any], directory: Path, *, key: str, default: str) -> Signal:
    """Read `signal:` of a stage.

    Args:
        section: {type: jsd, beta: 0.3}.
        directory: the recipe's directory; files of signals are relative to it.
        key: dotted key of the section, for messages.
        default: type when the section names none.

    Raises:
        UserError: an unknown type or key, or a file that does not load.
    """
    return read_signal(beside_recipe(section, directory), default=default, key=key)


def require_loss(signal: Signal, *, key: str) -> None:
    """Raise UserError for an advantage: it needs tokens that the student sampled."""
    if isinstance(signal, AdvantageSignal):
        raise UserError(
            "An advantage needs rollouts of the student, and this stage trains on cached rollouts of the teacher.",
            key=f"{key}.type",
            value=signal.type,
            remedy=f"Choose a loss: {', '.join(types_of(LossSignal))}.",
        )


def require_answers(signal: Signal, servers: Mapping[str, Servers], *, roles: Mapping[str, str], stage: str) -> None:
    """Check that each of a signal's models can answer where the recipe has it: on servers, or in the student's workers.

    Args:
        roles: role of each model -> the role in the signal that it plays; several may play the teacher.
        stage: dotted key of the stage.

    Raises:
        UserError: a model has servers and is not asked, or is asked for what it cannot answer.
    """
    key = f"{stage}.servers"
    for role in servers:
        if role not in roles:
            raise UserError(
                f"The signal {signal.type} asks no model in this role, so this has no effect.",
                key=f"{key}.{role}",
                value=servers[role].model_dump(exclude_unset=True),
                remedy=f"Leave it out; roles of this signal: {', '.join(roles)}.",
            )
        check_placement(signal, roles[role], "server", f"{key}.{role}")
    for role, played in roles.items():
        if role not in servers and (ask := signal.asks[played]) not in PLACED["colocated"]:
            raise UserError(
                f"The signal {signal.type} asks the {role} for {ask.value}; in the student's workers it has all.",
                key=f"{stage}.signal.type",
                value=signal.type,
                remedy=f"Use a signal over the whole vocabulary: {', '.join(types_of(LossSignal))}; or put the model "
                f"on servers, {key}: {{{role}: {{}}}}.",
            )


def require_own_prompt(signal: Signal, served: Collection[str], prompt: str) -> None:
    """Raise UserError for a prompt of the teacher's own that no colocated teacher would read.

    Args:
        served: roles of models on servers.
    """
    if "teacher" in signal.asks and "teacher" not in served:
        return
    served_only = "teacher" in served
    raise UserError(
        "Servers have room for the student's prompts only."
        if served_only
        else f"Signal {signal.type} asks no model in the role of the teacher, so this has no effect.",
        key="stages.opd.teacher_prompt",
        value=prompt,
        remedy=f"Leave it out, or {'remove stages.opd.servers' if served_only else 'choose a signal that asks it'}.",
    )


def signal_file(signal: Signal | Credit) -> str | None:
    """Locate the file of a signal or credit of a recipe's own; None for one of this package's."""
    return signal.type.rpartition(":")[0] or None


def decisive_keys(signal: Signal | Credit) -> dict[str, Any]:
    """List the keys of a signal or credit for a digest; its file is an input of the node, identified by content."""
    return signal.model_dump(by_alias=True) | {"type": signal.type.rpartition(":")[2]}


def signal_of_node(node: Node) -> Signal:
    """Read the signal of a stage of the graph."""
    keys = dict(node.settings["signal"])
    if SIGNAL in node.externals:
        keys["type"] = f"{node.externals[SIGNAL].location}:{keys['type']}"
    return read_signal(keys, default="", key="signal")


def servers_of_node(node: Node) -> dict[str, Servers]:
    """Read the servers of a stage of the graph: role of a frozen model -> settings."""
    return {role: Servers(**keys) for role, keys in node.operations.get("servers", {}).items()}


def frozen_of_node(node: Node, stored: tuple[Ask, ...] = ()) -> tuple[str, ...]:
    """List the roles of the frozen models that a stage of the graph asks, several in the place of the teacher.

    Args:
        stored: answers that the stage's data hold.
    """
    teachers = tuple(node.settings.get(SERVES, ())) or (TEACHER,)
    roles = signal_of_node(node).models(stored)
    return tuple(one for role in roles for one in (teachers if role == TEACHER else (role,)))


def signal_overrides(node: Node, context: Context) -> dict[str, Any]:
    """Set the keys of a command that name the signal and its frozen models."""
    signal = signal_of_node(node)
    overrides = {f"+s2d.signal.{name}": value for name, value in signal.model_dump(by_alias=True).items()}
    serves = node.settings.get(SERVES, {})
    # The student as the stage finds it, which travel asks, the trainer knows itself.
    for role in (role for role in node.stage.frozen_roles(node) if role != "model"):
        section = "s2d.teacher" if role == "teacher" else f"s2d.models.{role}"
        overrides[f"+{section}.path"] = model_location(node, role, context)
        overrides[f"+{section}.trust_remote_code"] = trusts_remote_code(node, role)
        if role in serves:
            overrides[f"+{section}.serves"] = serves[role]
        if role in (servers := servers_of_node(node)):
            overrides[f"+{section}.placement"] = "server"
            overrides |= {f"+{section}.server.{name}": value for name, value in servers[role].model_dump().items()}
    return overrides


def words(node: Node) -> str:
    """Describe a node's signal for `plan`: its type and keys."""
    return described_keys(node.settings["signal"])


def described_keys(section: Mapping[str, Any]) -> str:
    """Describe a section with a type: the type, and the keys that have a value."""
    keys = {name: value for name, value in section.items() if name != "type" and value is not None}
    chosen = ", ".join(f"{name} {value}" for name, value in keys.items())
    return section["type"] + (f" ({chosen})" if chosen else "")
