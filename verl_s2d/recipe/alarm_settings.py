"""Define the settings of a recipe's `alarms:`. Thresholds are relative to a running median, so that they do not depend
on the model's size or the task."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from verl_s2d.validation import Section

Action = Literal["log", "stop", "ignore"]


class Alarm(Section):
    """Settings common to all alarms. A recipe may write `name: stop` for `name: {action: stop}`."""

    action: Action = "log"
    """log: record and show it; stop: also end the stage with the best checkpoint before the alarm; ignore: neither."""

    @classmethod
    def expanded(cls, data: Any) -> Any:
        """Write an action alone as a mapping."""
        return {"action": data} if isinstance(data, str) else data


class NotFinite(Alarm):
    """A logged number is NaN or infinite, or an update was skipped because its gradient was not finite."""


class Rise(Alarm):
    """A value is above the running median by more than both margins, at `patience` steps in a row."""

    window: int = Field(20, ge=3)
    """Logged values in the median; no alarm before there are that many."""
    ratio: float = Field(2.0, ge=1)
    """First margin: a factor of the median."""
    spreads: float = Field(10.0, ge=0)
    """Second margin, in spreads. A spread is 1.4826 times the median absolute deviation: the standard deviation of
    normal noise."""
    least: float = Field(0.0, ge=0)
    """Values up to this one raise no alarm; in the unit of the value."""
    patience: int = Field(1, ge=1)
    """Steps in a row."""


class Fall(Alarm):
    """A value is below the highest running median so far by more than both margins, at `patience` steps in a row."""

    window: int = Field(20, ge=3)
    """Logged values in the median."""
    ratio: float = Field(0.5, ge=0)
    """First margin: a fraction of the highest median."""
    spreads: float = Field(6.0, ge=0)
    """Second margin, in spreads."""
    patience: int = Field(3, ge=1)
    """Steps in a row."""


class LossSpike(Rise):
    """Watch the loss: nats per token in 2a and 2b, the policy loss in 1 and 3."""

    least: float = Field(0.1, ge=0)


class LengthExplosion(Rise):
    """Watch the mean response length, in tokens."""

    patience: int = Field(3, ge=1)


class KlBlowUp(Rise):
    """Watch the logged KL divergence, in nats per token: to the teacher in 2a and 2b, to the reference policy and
    the sampling policy in 1 and 3."""

    ratio: float = Field(3.0, ge=1)
    least: float = Field(0.05, ge=0)
    patience: int = Field(3, ge=1)


class EntropyCollapse(Fall):
    """Watch the policy's entropy, in nats per token."""

    ratio: float = Field(0.1, ge=0)


class ScoreCollapse(Fall):
    """Watch the validation score of 1 and 3, or the training score where there is no validation."""

    window: int = Field(10, ge=3)


class NoSignal(Alarm):
    """A value has been zero at the first `patience` logged steps: the mean score or the largest advantage of 1 and 3
    (zero if the responses of every group score alike), the gradient norm of 2a and 2b."""

    patience: int = Field(5, ge=1)
    """Logged steps, from the first one on."""


class Truncation(Alarm):
    """At least this share of the responses is cut off at its maximal length, at `patience` steps in a row."""

    share: float = Field(0.9, gt=0, le=1)
    """Share of the responses."""
    patience: int = Field(3, ge=1)
    """Steps in a row."""


class UnscoredShare(Alarm):
    """At least this share of the groups of a step of 1 or 3, or of their validation's responses, was left out because
    the verifier could not judge it, at `patience` steps in a row."""

    share: float = Field(0.01, gt=0, le=1)
    """Dropped groups per group of the step's batch; others were sampled in their place."""
    patience: int = Field(1, ge=1)
    """Steps in a row."""


class Travel(Alarm):
    """Watch how far 2b has travelled from its start (`travel: true` of the stage), at `patience` steps in a row. Beyond
    the limit useful transfer has ended in arXiv 2609.32722, at any model size: stop, and go on with stage 3."""

    limit: float = Field(0.3, gt=0)
    """sqrt of the mean k3 to the start, in sqrt of nats per token."""
    patience: int = Field(3, ge=1)
    """Steps in a row."""


class OverlapLoss(Alarm):
    """Watch the overlap of the top k of student and teacher in 2b, in medians over `window` steps: it falls below
    `ratio` of its start, or it rises while the parse rate falls by `parse_drop`."""

    window: int = Field(10, ge=3)
    """Steps in a median."""
    ratio: float = Field(0.9, gt=0, lt=1)
    """Fraction of the overlap at the start."""
    parse_drop: float = Field(0.05, gt=0, lt=1)
    """Fall of the parse rate, between the medians."""


class Alarms(Section):
    """Configure the alarms of all stages; `alarms:` of a stage replaces single keys for that stage."""

    not_finite: NotFinite = NotFinite()
    loss_spike: LossSpike = LossSpike()
    length_explosion: LengthExplosion = LengthExplosion()
    entropy_collapse: EntropyCollapse = EntropyCollapse()
    score_collapse: ScoreCollapse = ScoreCollapse()
    kl_blow_up: KlBlowUp = KlBlowUp()
    no_signal: NoSignal = NoSignal()
    truncation: Truncation = Truncation()
    unscored: UnscoredShare = UnscoredShare()
    travel: Travel = Travel()
    overlap: OverlapLoss = OverlapLoss()
