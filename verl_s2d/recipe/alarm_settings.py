"""What a recipe may say under `alarms:`; every threshold counts from a running median, so that none depends on the
size of the model or the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Action = Literal["log", "stop", "ignore"]


def bounded(minimum: float, default: float) -> float:
    """Dataclass field whose lower bound is checked when the recipe is loaded."""
    return field(default=default, metadata={"at_least": minimum})


@dataclass(frozen=True)
class Alarm:
    """What all alarms have. A recipe may write `name: stop` for `name: {action: stop}`."""

    action: Action = "log"
    """log: it is recorded and shown; stop: also, the stage ends, and its result is the best checkpoint from before;
    ignore: neither."""


@dataclass(frozen=True)
class NotFinite(Alarm):
    """A logged number is NaN or infinite, or an update was left out because its gradient was not finite."""


@dataclass(frozen=True)
class Rise(Alarm):
    """A value is above the running median by more than both margins, at `patience` steps in a row."""

    window: int = bounded(3, 20)
    """Logged values that the median is of; nothing is said before there are so many."""
    ratio: float = bounded(1, 2.0)
    """One margin: so many times the median."""
    spreads: float = bounded(0, 10.0)
    """The other: so many spreads. One is 1.4826 times the median absolute deviation: of normal noise its standard
    deviation."""
    least: float = bounded(0, 0.0)
    """No value up to this one is too high, in the unit of the value."""
    patience: int = bounded(1, 1)


@dataclass(frozen=True)
class Fall(Alarm):
    """A value is below the highest running median so far by more than both margins, at `patience` steps in a row."""

    window: int = bounded(3, 20)
    ratio: float = bounded(0, 0.5)
    """One margin: what is left of the highest median."""
    spreads: float = bounded(0, 6.0)
    patience: int = bounded(1, 3)


@dataclass(frozen=True)
class LossSpike(Rise):
    """Of the loss: nats per token in 2a and 2b, the policy loss in 1 and 3."""

    least: float = bounded(0, 0.1)


@dataclass(frozen=True)
class LengthExplosion(Rise):
    """Of the mean response length, in tokens."""

    patience: int = bounded(1, 3)


@dataclass(frozen=True)
class KlBlowUp(Rise):
    """Of the KL divergence that the stage logs, in nats per token: to the teacher in 2a and 2b, to the reference policy
    and to the policy that sampled in 1 and 3."""

    ratio: float = bounded(1, 3.0)
    least: float = bounded(0, 0.05)
    patience: int = bounded(1, 3)


@dataclass(frozen=True)
class EntropyCollapse(Fall):
    """Of the policy's entropy, in nats per token."""

    ratio: float = bounded(0, 0.1)


@dataclass(frozen=True)
class ScoreCollapse(Fall):
    """Of the validation score, or without validation of the training score, of 1 and 3."""

    window: int = bounded(3, 10)


@dataclass(frozen=True)
class Alarms:
    """The alarms of all stages; `alarms:` of a stage replaces single keys for that stage."""

    not_finite: NotFinite = field(default_factory=NotFinite)
    loss_spike: LossSpike = field(default_factory=LossSpike)
    length_explosion: LengthExplosion = field(default_factory=LengthExplosion)
    entropy_collapse: EntropyCollapse = field(default_factory=EntropyCollapse)
    score_collapse: ScoreCollapse = field(default_factory=ScoreCollapse)
    kl_blow_up: KlBlowUp = field(default_factory=KlBlowUp)
