"""Sources of models and data sets: a script of the recipe, a hub id or a directory."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from verl_s2d.validation import Section


class Source(Section):
    """Name the origin of a model or a data set: a script of the recipe, or (models only) a hub id or directory.

    A recipe may write `student: <hub id or directory>` for `student: {model: <hub id or directory>}`.
    """

    model: str | None = None
    """Hub id or local directory; relative directories count from the recipe file."""
    revision: str | None = None
    """Revision of a hub id."""
    config: str | None = None
    """A config.json with the shape of a hub model, for `plan` where the hub cannot be reached."""
    script: str | None = None
    """Python file beside the recipe, run as `script --out DIR key=value ...`."""
    args: dict[str, Any] = {}
    """The script's key=value arguments. The value "{seed}" stands for the seed of the row being built."""
    trust_remote_code: bool = False
    """Models only: run the Python code that comes with the checkpoint, wherever the model or what is trained from it is
    loaded."""
    uses: list[str] = []
    """Other files the script reads or imports: a change in them rebuilds its output."""

    @model_validator(mode="before")
    @classmethod
    def _model_alone(cls, data: Any) -> Any:
        return {"model": data} if isinstance(data, str) else data
