"""Find signals by type: a name from this folder, or file.py:Name for a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d import signals
from verl_s2d.errors import UserError
from verl_s2d.signals.signal import AdvantageSignal, Ask, LossSignal, Signal
from verl_s2d.signals.top_k_kl import TopK
from verl_s2d.signals.type_registry import TypeRegistry

_ANSWERS = {AdvantageSignal: Ask.SAMPLED, LossSignal: Ask.FULL, TopK: Ask.TOP_K}
PLACED = {"colocated": (Ask.SAMPLED, Ask.FULL), "server": (Ask.SAMPLED, Ask.TOP_K)}
"""Placement of a frozen model -> what it can answer. A server would have to send the whole vocabulary per token."""
_REGISTRY = TypeRegistry(signals, Signal, tuple(_ANSWERS), "signal")


def known_signals() -> Mapping[str, type[Signal]]:
    """Import the files of this folder and return their signals: type -> class."""
    return _REGISTRY.known


def read_signal(section: Mapping[str, Any], *, default: str, key: str) -> Signal:
    """Read a section {type: jsd, beta: 0.3}.

    Args:
        default: the type if the section gives none.
        key: dotted key of the section, for messages.

    Raises:
        UserError: the type is unknown, a key or value is not the signal's, or a user's file does not load.
    """
    found = _REGISTRY.read(section, default=default, key=key)
    _check_asks(found, f"{key}.type")
    return found


def is_loss(section: Mapping[str, Any], *, default: str) -> bool:
    """Tell whether a section's type is a loss on the student's logits; ignores its other keys."""
    try:
        signal, _ = _REGISTRY.class_of(section.get("type") or default, "type")
    except UserError:  # read_signal reports it
        return False
    return not issubclass(signal, AdvantageSignal)


def types_with(key: str) -> list[str]:
    """List the types of this folder that have this key."""
    return _REGISTRY.types_with(key)


def types_of(kind: type[Signal]) -> list[str]:
    """List the types of this folder that derive from AdvantageSignal or from LossSignal."""
    return [name for name, signal in known_signals().items() if issubclass(signal, kind)]


def check_placement(signal: Signal, role: str, placement: str, key: str) -> None:
    """Raise UserError if a frozen model in this placement cannot answer what the signal asks."""
    if (ask := signal.asks[role]) not in PLACED[placement]:
        answers = PLACED[placement]
        able = " or ".join(answer.value for answer in answers)
        fitting = [name for kind, answer in _ANSWERS.items() if answer in answers for name in types_of(kind)]
        placements = [name for name, answers in PLACED.items() if ask in answers]
        raise UserError(
            f"signal {signal.type} asks the {role} for {ask.value}, and a model with placement {placement} answers "
            f"with {able}",
            key=key,
            value=placement,
            remedy=f"Use placement {' or '.join(placements)}, or a signal that asks for these answers: "
            f"{', '.join(fitting)}.",
        )


def _check_asks(signal: Signal, key: str) -> None:
    """Raise UserError for a signal that asks frozen models for another answer than those of its kind get."""
    answer = next(answer for base, answer in _ANSWERS.items() if isinstance(signal, base))
    idle = not signal.asks and isinstance(signal, LossSignal)
    if idle or any(ask is not answer for ask in signal.asks.values()):
        asked = {role: ask.name for role, ask in signal.asks.items()}
        name = type(signal).__name__
        raise UserError(
            f"{name} asks frozen models for {asked}, and would be given {answer.name}, {answer.value}",
            key=key,
            value=signal.type,
            remedy="An advantage asks for SAMPLED: an exact divergence does not depend on the sampled token, so as an "
            "advantage it teaches nothing. A loss asks for FULL, one that derives from TopK for TOP_K.",
        )
