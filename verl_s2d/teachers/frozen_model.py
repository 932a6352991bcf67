"""Name a frozen model: the checkpoint behind a role of a signal."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from verl_s2d.validation import Section


class FrozenModel(Section):
    """A checkpoint that is asked and never trained. Equal ones share an engine, whatever their roles.

    Attributes:
        path: directory or hub id.
        revision: of a hub id; null for its main branch.
        trust_remote_code: run the code that the checkpoint brings.
        placement: colocated: a forward-only engine of verl's in the student's workers.
    """

    path: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    trust_remote_code: bool = False
    placement: Literal["colocated"] = "colocated"
