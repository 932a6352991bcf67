"""Define the rows of the comparison as small functions of a builder. Two rows differ only by the stage they drop.

A row returns its final model, which is evaluated. Stages that rows share have the same digest and are built once.
A recipe adds rows of its own with `rows: [full-bridge, my_rows.py:my_row]`: a function like these, in a file beside the
recipe. Its name in reports is the function's with dashes, or `name` of `name=my_rows.py:my_row`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_s2d import user_code
from verl_s2d.validation import Refused, suggestion

if TYPE_CHECKING:
    from verl_s2d.stages.builder import Builder, Model

Row = Callable[["Builder"], "Model"]

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that may become names of files."""

_OWN = re.compile(r"(?:(?P<name>[^=:]+)=)?(?P<file>[^=:]+\.py):(?P<function>[A-Za-z_]\w*)")


def warmed(b: Builder, teacher: Model, slice_name: str, *, of: str = "") -> Model:
    """Run Stage 2a from the cold student. `of` tells the stages' names from those of other teachers."""
    return b.warmup(b.model("student"), teacher, b.rollouts(teacher, slice_name, of=of), of=of)


def bridge(b: Builder, teacher: Model, slice_name: str, *, of: str = "") -> Model:
    """Run Stages 2a and 2b from the cold student."""
    return b.opd(warmed(b, teacher, slice_name, of=of), teacher, slice_name, of=of)


def cold_student(b: Builder) -> Model:
    """Evaluate the student as it is."""
    return b.model("student")


def direct_grpo(b: Builder) -> Model:
    """Spend all labels on the student."""
    return b.student_rl(b.model("student"), "all")


def full_bridge(b: Builder) -> Model:
    """Run Stages 1, 2a, 2b on all labels."""
    return bridge(b, b.teacher_rl(b.model("teacher"), "all"), "all")


def raw_teacher(b: Builder) -> Model:
    """Run the full bridge without Stage 1."""
    return bridge(b, b.model("teacher"), "all", of="raw")


def opd_only(b: Builder) -> Model:
    """Run the full bridge without Stage 2a."""
    return b.opd(b.model("student"), b.teacher_rl(b.model("teacher"), "all"), "all", of="cold")


def warmup_only(b: Builder) -> Model:
    """Run the full bridge without Stage 2b: off-policy distillation."""
    return warmed(b, b.teacher_rl(b.model("teacher"), "all"), "all")


def bridge_only_1h(b: Builder) -> Model:
    """Run Stages 1, 2a, 2b on the first half of the labels."""
    return bridge(b, b.teacher_rl(b.model("teacher"), "1h"), "1h")


def half_split(b: Builder) -> Model:
    """Run the whole workflow: the bridge on the first half of the labels, Stage 3 on the second."""
    return b.student_rl(bridge_only_1h(b), "2h", teacher=b.teacher_rl(b.model("teacher"), "1h"))


def replay_control(b: Builder) -> Model:
    """Run the same Stage 3 on the labels that the bridge has used: what fresh labels are worth."""
    return b.student_rl(bridge_only_1h(b), "1h", teacher=b.teacher_rl(b.model("teacher"), "1h"))


def held_out_upstream(b: Builder) -> Model:
    """Give the second half to the teacher, after its first; it reaches the student through the same bridge."""
    return bridge(b, b.teacher_rl(b.teacher_rl(b.model("teacher"), "1h"), "2h"), "1h", of="upstream")


def same_size_teacher(b: Builder) -> Model:
    """Run the full bridge from a teacher that is the student after Stage 1: what the teacher's size is worth."""
    return bridge(b, b.teacher_rl(b.model("student"), "all", of="same-size"), "all", of="same-size")


def sft_teacher(b: Builder) -> Model:
    """Run the full bridge from a teacher trained on demonstrations instead of by Stage 1."""
    return bridge(b, b.model("sft_teacher"), "all", of="sft")


ROWS: Mapping[str, Row] = {
    row.__name__.replace("_", "-"): row
    for row in (
        cold_student,
        direct_grpo,
        bridge_only_1h,
        half_split,
        full_bridge,
        raw_teacher,
        opd_only,
        warmup_only,
        replay_control,
        held_out_upstream,
        same_size_teacher,
        sft_teacher,
    )
}
DEFAULT_ROWS = tuple(ROWS)[:4]


def row_name(entry: str) -> str:
    """Return the name of an entry of `rows:`, which is a name or [name=]file.py:function."""
    own = _OWN.fullmatch(entry)
    return own["name"] or own["function"].replace("_", "-") if own else entry


def own_rows(entries: Iterable[str], directory: Path, taken: Iterable[str]) -> dict[str, Row]:
    """Load the rows that a recipe brings itself.

    Args:
        entries: of `rows:`.
        directory: of the recipe, in which the files are.
        taken: names of this package's rows.

    Returns:
        Name -> function.

    Raises:
        UserError: a name that is taken or unusable, or a function that cannot be loaded.
    """
    rows: dict[str, Row] = {}
    for entry in entries:
        if (own := _OWN.fullmatch(entry)) is None:
            continue
        name = row_name(entry)
        if name in taken or name in rows or not FILE_NAME.fullmatch(name):
            remedy = f"Write another one before it: my-name={own['file']}:{own['function']}."
            raise Refused("The name of this row is taken or unusable.", key="rows", value=entry, remedy=remedy)
        rows[name] = user_code.load(f"{directory / own['file']}:{own['function']}", what="row", key="rows")
    return rows


def roles_of(row: Row, name: str = "", serving: Mapping[str, tuple[str, ...]] | None = None) -> tuple[str, ...]:
    """Return the roles of the models that a row asks for, each once.

    Args:
        serving: role -> data sources that its model serves.

    Raises:
        Refused: the row's function raises.
    """
    stand_in = _Roles(serving or {})
    try:
        row(stand_in)
    except Exception as error:  # the user's code may raise anything
        raise Refused(
            f"The row raises {type(error).__name__}: {error}",
            key="rows",
            value=name,
            remedy="Write a function of the builder that returns a model, like those of verl_s2d/recipe/rows.py.",
        ) from error
    return tuple(stand_in.roles)


class _Roles:
    """Stand in for the builder, its stages and their results, and record the models asked for."""

    def __init__(self, serving: Mapping[str, tuple[str, ...]]) -> None:
        self.roles: dict[str, None] = {}
        self.serving = serving

    def model(self, role: str) -> _Roles:
        self.roles[role] = None
        return self

    def __getattr__(self, name: str) -> _Roles:
        return self

    def __call__(self, *args: Any, **settings: Any) -> _Roles:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def check_rows(names: Iterable[str], key: str, known: Iterable[str]) -> None:
    """Raise Refused naming the first unknown row and the nearest known one."""
    names, known = list(names), list(known)
    if not names:
        raise Refused("No row is chosen.", key=key, value=names, remedy=f"Choose from {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise Refused("Unknown row.", key=key, value=name, remedy=suggestion(name, known))
