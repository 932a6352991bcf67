"""Say what a check has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_s2d.errors import UserError


@dataclass(frozen=True)
class Told:
    """Result of a check that refuses nothing."""

    detail: str
    warnings: Sequence[str] = ()

    def text(self) -> str:
        return "\n".join([self.detail, *(f"warning: {warning}" for warning in self.warnings)])


@dataclass(frozen=True)
class Finding:
    """One entry of `verl-s2d check`.

    Attributes:
        ok: None for what was not looked at.
        bad_input: whether the recipe, its data or its models are at fault, not this machine.
    """

    what: str
    ok: bool | None
    detail: str
    bad_input: bool = False

    @classmethod
    def refusal(cls, what: str, error: UserError) -> Finding:
        return cls(what, False, str(error), bad_input=True)

    def text(self) -> str:
        first, *rest = self.detail.splitlines() or [""]
        mark = {True: "ok  ", False: "FAIL", None: "skip"}[self.ok]
        return "\n".join([f"{mark} {self.what}: {first}", *(f"       {line}" for line in rest)])
