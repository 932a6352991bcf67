"""Define sources of data sets and models: a script of the recipe, a hub id or a directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from verl_s2d.validation import Refused, Section, json_values

Args = Annotated[dict[str, Any], AfterValidator(json_values)]
"""Arguments that reach another process with their types."""


class DataScript(Section):
    """A Python file beside the recipe, run as `script --out DIR key=value ...`."""

    script: str
    """The file, relative to the recipe."""
    args: Args = {}
    """The script's key=value arguments. The value "{seed}" stands for the seed of the row being built."""
    uses: list[str] = []
    """Other files the script reads or imports: a change in them rebuilds its output."""


class ModelSource(Section):
    """A model: a hub id, a local directory, or the output of a script.

    A recipe may write `student: <hub id or directory>` for `student: {model: <hub id or directory>}`.
    """

    model: str | None = None
    """Hub id or local directory; relative directories count from the recipe file."""
    revision: str | None = None
    """Revision of a hub id, which is loaded from the hub's cache: download it with `hf download` before a run."""
    config: str | None = None
    """A config.json with the shape of a hub model, for `plan` where the hub cannot be reached."""
    script: str | None = None
    """A Python file beside the recipe that makes the model, as `script` of a DataScript."""
    args: Args = {}
    """The script's key=value arguments."""
    uses: list[str] = []
    """Other files the script reads or imports: a change in them rebuilds its output."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the checkpoint, wherever the model or one trained from it is loaded."""
    serves: Annotated[list[str], Field(min_length=1)] | None = None
    """Data sources of the problems that it teaches, as one of several teachers (row `mopd`). It changes no weights."""

    @classmethod
    def expanded(cls, data: Any) -> Any:
        """Write a model's name alone as a mapping."""
        return {"model": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSource:
        if (self.model is None) == (self.script is None):
            raise Refused(
                "A model is either a hub id or directory, or made by a script.",
                value=self.model_dump(exclude_unset=True),
                remedy="Write <hub id or directory>, or {script: file.py, args: {...}}.",
            )
        owner, idle = ("model", ("revision", "config")) if self.model is None else ("script", ("args", "uses"))
        for key in idle:
            if key in self.model_fields_set:
                raise Refused(
                    f"This key has no effect without `{owner}:`.",
                    key=key,
                    value=getattr(self, key),
                    remedy=f"Remove it, or name a {owner}.",
                )
        return self


def require_one_server(serves: Mapping[str, Sequence[str]], key: str = "models") -> None:
    """Raise Refused for a data source that is named twice.

    Args:
        serves: role -> data sources.
        key: dotted key of the models, for messages.
    """
    server: dict[str, str] = {}
    for role, sources in serves.items():
        for source in sources:
            if source in server:
                raise Refused(
                    f"The model {server[source]} serves this data source already.",
                    key=f"{key}.{role}.serves",
                    value=source,
                    remedy="Name it once: a problem has one teacher.",
                )
            server[source] = role
