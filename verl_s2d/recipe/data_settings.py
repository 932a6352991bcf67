"""Define the section `data:` of a recipe: where problems and prompts come from, and how they are rendered."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from verl_s2d.data.formats.column_names import Columns
from verl_s2d.data.label_split import HALF
from verl_s2d.platforms.template_date import DEFAULT
from verl_s2d.recipe.source import DataScript
from verl_s2d.recipe.stage_settings import Positive
from verl_s2d.validation import Refused, Section, json_values, validated


class Data(Section):
    """Problems: a script that writes train.parquet and evaluation parquets, or existing files (parquet, jsonl, json or
    csv; columns of verl or of data/formats/verl_columns.py)."""

    prompt_tokens: Positive
    """The longest prompt, with the chat template."""
    response_tokens: Positive
    """The longest response; what is longer is cut off."""
    overlong_prompts: Literal["refuse", "drop", "cut"] = "refuse"
    """Treatment, in every stage and evaluation, of prompts that are longer than prompt_tokens with the chat template of
    any model: refuse the run, drop the problem before slices are made, or cut text from the start of its longest
    message. The ledger counts them."""
    source: DataScript | None = None
    """A script that writes train.parquet and evaluation parquets."""
    train: str | None = None
    """File of the labelled training problems; in the place of `source`."""
    eval: dict[str, str] = {}
    """Evaluation sets, name -> file; not beside `source`, which writes its own."""
    columns: Columns | None = None
    """Names of the columns in data.train, and in those of the other files that have them."""
    validation: str | None = None
    """Labelled problems on which stages 1 and 3 are scored during training (`validate_every`): neither trained on nor
    evaluated on. The ledger counts their labels and verifier calls too."""
    labels: Annotated[int, Field(ge=2)] | None = None
    """Number of labelled training problems used; null for all."""
    split: Annotated[float, Field(gt=0, lt=1)] = HALF
    """Share of the slice `1h` in the labels, which rows spend before stage 3; the rest is `2h`."""
    prompts: Annotated[list[str], Field(min_length=1)] | DataScript | None = None
    """Prompts without answers for stages 2a and 2b: a file, a list of files, or a script that writes prompts.parquet.
    Rows read them as the slice `prompts`, or `all+prompts` beside the labelled problems'."""
    chat_template: Annotated[dict[str, Any], AfterValidator(json_values)] = {}
    """Arguments of the tokenizer's chat template, for example {enable_thinking: false}; the same in every stage."""
    template_date: str = DEFAULT
    """The date that chat templates print which read the clock (strftime_now): the same in every stage."""
    expected: dict[str, int] = {}
    """Number of problems a source is expected to write, {train: 16142, math500: 500}: for the costs in `plan` until it
    has run."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _files(cls, prompts: Any) -> Any:
        """Read one file as a list, and a script with the faults of its own keys."""
        if isinstance(prompts, dict):
            return validated(DataScript, prompts)
        return [prompts] if isinstance(prompts, str) else prompts

    @field_validator("template_date")
    @classmethod
    def _is_a_date(cls, text: str) -> str:
        try:
            date.fromisoformat(text)
        except ValueError:
            raise Refused("This is no date.", value=text, remedy=f"Write it like {DEFAULT}.") from None
        return text

    @field_validator("chat_template")
    @classmethod
    def _names(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if not name.isidentifier():
                raise Refused(
                    "A template cannot read an option of this name.",
                    key=name,
                    value=value,
                    remedy="Use letters, digits and _, as in the template.",
                )
        return options

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if (self.source is None) == (self.train is None):
            raise Refused(
                "Training problems come either from data.source (a script) or from data.train (a file).",
                remedy="Give exactly one of data.source and data.train.",
            )
        if self.source is None and not self.eval:
            raise Refused("There is nothing to evaluate on.", key="eval", value={}, remedy="Give {name: file.parquet}.")
        if self.source is not None and self.columns is not None:
            raise Refused(
                "A data script writes verl's columns.",
                key="columns",
                value=self.columns.model_dump(exclude_none=True),
                remedy="Remove data.columns.",
            )
        if self.source is not None and self.eval:
            raise Refused(
                "A data script writes its own evaluation sets.",
                key="eval",
                value=self.eval,
                remedy="Remove data.eval.",
            )
        return self
