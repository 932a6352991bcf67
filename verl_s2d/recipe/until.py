"""Define `until:`, the rules that end a training stage before its maximum of `steps`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from verl_s2d.validation import Refused, Section

TRAVEL, SAMPLED_TOKENS = "travel", "sampled_tokens"
VALIDATION, DIVERGENCE = "validation", "divergence"
_WINDOWS = {VALIDATION: 3, DIVERGENCE: 30}


class Plateau(Section):
    """A line is fitted to the newest values; the stage ends once they no longer improve significantly. `plateau:
    validation` is short for {of: validation}."""

    of: Literal["validation", "divergence"]
    """validation: scores of `validate_every`, which should rise; divergence: the divergence that the stage minimises,
    as logged at every step, which should fall."""
    window: Annotated[int, Field(ge=3)]
    """Number of values. Default: 3 validations, 30 steps."""
    slope_se: Annotated[FiniteFloat, Field(ge=0)] = 1.0
    """Standard errors of the slope that an improvement has to exceed."""

    @classmethod
    def expanded(cls, data: Any) -> Any:
        """Write out the short form, and the default of `window`, which depends on `of`."""
        section = {"of": data} if isinstance(data, str) else data
        if not isinstance(section, dict) or section.get("of") not in _WINDOWS:
            return section
        return {"window": _WINDOWS[section["of"]], **section}


class Until(Section):
    """Rules that end a stage: it ends after the first step at which one of them holds."""

    travel: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """Distance from the stage's start, sqrt of the mean k3 on a step's rollouts (objectives.travel). Useful transfer by
    distillation ends at about .3 (arXiv 2609.32722)."""
    plateau: Plateau | None = None
    """Validation scores or the divergence no longer improve."""
    sampled_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that the stage has sampled."""

    @property
    def reads(self) -> dict[str, str]:
        """Map what the rules read (travel, sampled_tokens, validation or divergence) -> the key that reads it."""
        found = {key: key for key in (TRAVEL, SAMPLED_TOKENS) if getattr(self, key) is not None}
        return found | ({self.plateau.of: "plateau.of"} if self.plateau is not None else {})

    def written(self) -> dict[str, Any]:
        """Write the rules that are set."""
        return self.model_dump(exclude_none=True)

    def require_measured(self, measured: Collection[str]) -> None:
        """Refuse rules that read anything but `measured`, and sections without a rule.

        Raises:
            Refused: keys count from this section.
        """
        if not self.reads:
            raise Refused(
                "No rule is given.", value={}, remedy=f"Set one of {', '.join(Until.known_keys())}, or leave it out."
            )
        for name, key in self.reads.items():
            if name not in measured:
                others = [key for key in (TRAVEL, SAMPLED_TOKENS) if key in measured]
                others += [f"plateau: {key}" for key in (VALIDATION, DIVERGENCE) if key in measured]
                raise Refused(
                    f"This can never end the stage: it measures no {name.replace('_', ' ')} here.",
                    key=key,
                    value=name if key == "plateau.of" else getattr(self, key),
                    remedy=f"Use {' or '.join(others)}." if others else "Leave it out.",
                )

    def require_reachable(self, steps: int, *, validate_every: int | None = None, tokens: int | None = None) -> None:
        """Refuse rules that cannot hold before the maximum of steps.

        Args:
            steps: the maximum.
            validate_every: steps between two validations; None for no validation.
            tokens: the most that a step may sample; None where it is not known.

        Raises:
            Refused: keys count from this section.
        """
        plateau = self.plateau
        if plateau is not None and plateau.of == VALIDATION and validate_every is None:
            raise Refused(
                "This can never end the stage: it has no validation.",
                key="plateau.of",
                value=VALIDATION,
                remedy="Set the steps between two validations.",
            )
        if plateau is not None:
            values = (steps - 1) // (validate_every if plateau.of == VALIDATION else 1)
            if values < plateau.window:
                unit = "validations" if plateau.of == VALIDATION else "steps"
                raise Refused(
                    f"This can never end the stage: before the last of its {steps} steps it has {values} {unit}.",
                    key="plateau.window",
                    value=plateau.window,
                    remedy=f"At most {values}, or more steps."
                    if values >= 3
                    else f"More steps{', or more frequent validations' if unit == 'validations' else ''}.",
                )
        if self.sampled_tokens is not None and tokens is not None and tokens * steps < self.sampled_tokens:
            raise Refused(
                f"This can never end the stage: its {steps} steps sample at most {tokens * steps:,} tokens.",
                key=SAMPLED_TOKENS,
                value=self.sampled_tokens,
                remedy=f"At most {tokens * steps}, or more steps.",
            )
