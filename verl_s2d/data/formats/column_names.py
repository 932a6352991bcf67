"""Name the columns of a data file that is not in verl's: `columns:` of a recipe, arguments of `verl-s2d convert`."""

from __future__ import annotations

from collections.abc import Mapping

from verl_s2d.validation import Section, validated


class Columns(Section):
    """Names of a data file's columns, where they are not found by themselves; `struct.member` for a member."""

    question: str | None = None
    """The problem: text, or chat messages up to the answer."""
    answer: str | None = None
    """The answer, or a solution that ends with it."""
    after: str | None = None
    """The answer is the text behind the last of these marks, for example ####. Null: after #### if every answer has it,
    otherwise the last \\boxed{} where there is one."""
    id: str | None = None
    """A problem's unique id. Null: a known column, otherwise a digest of the problem's text."""
    data_source: str | None = None
    """The value of verl's column of that name, by which verl chooses a scorer. Null: the file's, or its name."""
    template: str | None = None
    """Text around every problem: boxed, dapo or none. Null: boxed where the problem is text and asks for no form."""


def columns_of(names: Mapping[str, str], key: str = "columns") -> Columns | None:
    """Check a map of columns as a command line gives it; None for an empty one. Raises UserError."""
    return validated(Columns, dict(names), key=key) if names else None
