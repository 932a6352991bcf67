"""Define the rows of further teacher candidates: `full-bridge-teacher_small` is `full-bridge` with that teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from verl_s2d.recipe.method_rows import METHOD_ROWS
from verl_s2d.recipe.planner_settings import TEACHER
from verl_s2d.recipe.rows import ROWS, Row

if TYPE_CHECKING:
    from verl_s2d.stages.builder import Builder, Model

_NAMED = ("teacher_rl", "rollouts", "warmup", "opd", "student_rl")
"""Stages whose names tell the teacher."""


def teacher_rows(roles: Iterable[str]) -> dict[str, Row]:
    """Return the rows of teachers in other roles than `teacher`, by name."""
    rows = ("full-bridge", "half-split", "exopd")
    of_name = {**ROWS, **METHOD_ROWS}
    return {row_of(row, role): _from(of_name[row], role) for role in roles if role != TEACHER for row in rows}


def row_of(row: str, role: str) -> str:
    """Name a row by the role of its teacher."""
    return row if role == TEACHER else f"{row}-{role}"


def _from(row: Row, role: str) -> Row:
    return lambda b: row(_OtherTeacher(b, role))


class _OtherTeacher:
    """A builder whose teacher is the model of another role."""

    def __init__(self, builder: Builder, role: str):
        self._builder, self._role = builder, role

    def model(self, role: str) -> Model:
        return self._builder.model(self._role if role == TEACHER else role)

    def __getattr__(self, name: str) -> Any:
        made = getattr(self._builder, name)
        if name not in _NAMED:
            return made
        return lambda *args, of="", **settings: made(*args, of="-".join(filter(None, [of, self._role])), **settings)
