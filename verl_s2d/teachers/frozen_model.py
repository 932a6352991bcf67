"""Name a frozen model: the checkpoint behind a role of a signal."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from verl_s2d.validation import Section


class FrozenModel(Section):
    """A checkpoint that is evaluated and never trained. Equal ones share an engine, whatever their roles.

    Attributes:
        path: directory or hub id.
        revision: revision of a hub id; null: its main branch.
        trust_remote_code: run code from the checkpoint.
        placement: `colocated`, one of verl's forward-only engines in the student's workers.
    """

    path: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    trust_remote_code: bool = False
    placement: Literal["colocated"] = "colocated"
