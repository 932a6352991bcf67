"""Define the sections of a recipe. `load_recipe` fills them from yaml; all keys, types and bounds are checked here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from verl_s2d.data.formats.column_names import Columns
from verl_s2d.data.label_split import HALF
from verl_s2d.platforms.template_date import DEFAULT
from verl_s2d.recipe.alarm_settings import Alarms
from verl_s2d.recipe.matched import Matched, check_matched
from verl_s2d.recipe.method_rows import MADE_ROWS, METHOD_ROWS, PROMPT_ROWS, ROUTED_ROWS
from verl_s2d.recipe.pass_at_k import check_pass_at
from verl_s2d.recipe.planner_settings import Planner
from verl_s2d.recipe.rows import DEFAULT_ROWS, FILE_NAME, ROWS, Row, check_rows, own_rows, roles_of, row_name
from verl_s2d.recipe.source import DataScript, ModelSource, require_one_server
from verl_s2d.recipe.stage_sections import Stages
from verl_s2d.recipe.stage_settings import NonNegative, Positive, Sampler
from verl_s2d.recipe.teacher_rows import teacher_rows
from verl_s2d.validation import Refused, Section, json_values, validated


class Data(Section):
    """Problems: a script that writes train.parquet and evaluation parquets, or existing files (parquet, jsonl, json or
    csv; columns of verl or of data/formats/verl_columns.py)."""

    prompt_tokens: Positive
    response_tokens: Positive
    overlong_prompts: Literal["refuse", "drop", "cut"] = "refuse"
    """Treatment, in every stage and evaluation, of prompts that are longer than prompt_tokens with the chat template of
    any model: refuse the run, drop the problem before slices are made, or cut text from the start of its longest
    message. The ledger counts them."""
    source: DataScript | None = None
    train: str | None = None
    eval: dict[str, str] = {}
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


class Evaluation(Sampler):
    """Sampling of the evaluation. The paper reports avg@16."""

    samples: Positive = 16
    max_tokens: Positive | None = None
    """Null: data.response_tokens."""
    pass_at: list[int] = []
    """The k of the report's pass@k, each at most `samples`; empty for 1, 2, 4, ... It rebuilds nothing."""

    @model_validator(mode="after")
    def _defined_k(self) -> Evaluation:
        check_pass_at(self.pass_at, self.samples, "pass_at")
        return self


class Cluster(Section):
    """Machines and time limits. None of it changes what is built, so none of it rebuilds anything."""

    nodes: Positive = 1
    gpus_per_node: Positive = 1
    gpu_memory_gb: NonNegative = 80.0
    """Memory of one GPU in GiB, which vendors write as GB; `plan` compares its estimates with it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    warm_start: Literal["auto"] | bool = "auto"
    """Fork stages from a process that has imported verl already, instead of importing it once a stage."""
    stall_minutes: NonNegative | None = None
    """Stop a stage that writes nothing, neither log nor files, for this long before its first step; a stage that counts
    no steps, at any time. Null: 60 on cuda, 10 on cpu."""
    step_minutes: NonNegative | None = None
    """Stop a stage that finishes no step for this long, the first step counted from the stage's start, and for ten
    times its longest step. Null: 120 on cuda, 30 on cpu."""
    grace_seconds: NonNegative | None = None
    """Seconds after SIGTERM that a training stage has to end its step and save before it is stopped. Choose two steps,
    and less than the notice of the scheduler. Null: 1800 on cuda, 25 on cpu."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Number of restarts of a failed stage, each from its last checkpoint."""
    wait_minutes: NonNegative = 30.0
    """Longest wait, before each attempt, until the cluster of RAY_ADDRESS has its nodes and they are free."""

    def on(self, device: str) -> Cluster:
        """Fill in the times that depend on the device: steps take seconds on a CPU and minutes on GPUs."""
        stall, step, grace = (10.0, 30.0, 25.0) if device == "cpu" else (60.0, 120.0, 1800.0)
        return self.model_copy(
            update={
                "stall_minutes": stall if self.stall_minutes is None else self.stall_minutes,
                "step_minutes": step if self.step_minutes is None else self.step_minutes,
                "grace_seconds": grace if self.grace_seconds is None else self.grace_seconds,
            }
        )


@dataclass(frozen=True)
class Origin:
    """The file of a recipe and what else was said when it was loaded: enough to load it again."""

    path: Path
    overrides: tuple[str, ...] = ()
    """`key=value` from the command line."""
    shrink: str | None = None
    """Device for which the recipe was shrunk."""


SHORT_FORMS = tuple(dict.fromkeys(role for row in ROWS.values() for role in roles_of(row)))
"""Roles that may stand at the top level of a recipe."""


class Recipe(Section):
    """One experiment: models, data, the rows to compare and the settings of their stages."""

    name: str
    models: dict[str, ModelSource] = {}
    """Models by role. A role that rows read may stand at the top level: `student:` for `models: {student: ...}`."""
    data: Data
    verifier: str | dict[str, Any]
    """A verifier of verl_s2d.verifiers, alone or with options ({name: math, form: boxed}), or file.py:function beside
    the recipe; or a mapping of data sources to these, {math_dapo: math, taco: file.py:function}."""
    stages: Stages = Stages()
    seeds: list[int] = [0]
    rows: list[str] = list(DEFAULT_ROWS)
    """Names of rows; [name=]file.py:function adds a row of yours (rows.py)."""
    matched: dict[str, Matched] = {}
    """More rows, by a name of yours: {direct-grpo-same-calls: {row: direct-grpo, to: half-split, by: verifier_calls}}.
    """
    evaluation: Evaluation = Evaluation()
    planner: Planner | None = None
    """What `probe` and `pilot` measure; null: the defaults of planner_settings.py."""
    cluster: Cluster = Cluster()
    alarms: Alarms = Alarms()
    """Responses to failures of training; described in alarm_settings.py."""
    published: dict[str, dict[str, float]] = {}
    """Published avg@k to show beside the rows, in percent: row -> evaluation set -> value."""
    _origin: Origin = PrivateAttr(default=Origin(Path()))

    @property
    def origin(self) -> Origin:
        return self._origin

    @property
    def path(self) -> Path:
        """The recipe's file."""
        return self._origin.path

    @property
    def directory(self) -> Path:
        """The directory of the recipe's file, from which relative paths count."""
        return self._origin.path.parent

    @cached_property
    def plain_rows(self) -> dict[str, Row]:
        """Name -> function of all rows that are not matched: the paper's, other methods', then the recipe's own."""
        ours = {**ROWS, **METHOD_ROWS, **PROMPT_ROWS, **MADE_ROWS, **self.teacher_rows}
        ours |= ROUTED_ROWS if self.serving else {}
        return ours | own_rows(self.rows, self.directory, ours)

    @cached_property
    def teacher_rows(self) -> dict[str, Row]:
        """Name -> function of the rows of the planner's other teachers."""
        return teacher_rows(self.planner.candidates(self.models) if self.planner is not None else ())

    @property
    def plans_pilot(self) -> bool:
        """Report whether the recipe has settings of a pilot."""
        return self.planner is not None and "pilot" in self.planner.model_fields_set

    @property
    def verifier_names(self) -> str:
        """Name the verifier for people, or the one of each data source."""
        chosen = self.verifier
        if isinstance(chosen, str):
            return chosen
        if "name" in chosen:
            return str(chosen["name"])
        names = {source: one if isinstance(one, str) else one.get("name", "") for source, one in chosen.items()}
        return ", ".join(f"{source}: {name}" for source, name in names.items())

    @property
    def serving(self) -> dict[str, tuple[str, ...]]:
        """Map role -> data sources that its model serves, of the models that serve some."""
        return {role: tuple(sorted(source.serves)) for role, source in self.models.items() if source.serves}

    @property
    def row_names(self) -> tuple[str, ...]:
        """Names of all rows to choose from."""
        return (*self.plain_rows, *self.matched)

    @property
    def all_rows(self) -> list[str]:
        """Names of the rows that `--rows all` means: the paper's and the recipe's, with models that the recipe has.

        The rows of a pool are among them where the recipe has one.
        """
        there = (name for name in self.row_names if self.roles_of(name) <= self.models.keys())
        by_name = METHOD_ROWS.keys() | ROUTED_ROWS.keys() | MADE_ROWS.keys() | self.teacher_rows.keys()
        by_name |= set() if self.data.prompts else PROMPT_ROWS.keys()
        return [name for name in there if name not in by_name or name in self.chosen_rows]

    @property
    def chosen_rows(self) -> list[str]:
        """Names of the rows that the recipe compares."""
        return [row_name(entry) for entry in self.rows]

    def roles_of(self, name: str) -> set[str]:
        """Return the roles of the models that a row reads, those of the row it is matched to included."""
        matched = self.matched.get(name)
        if matched is not None:
            return self.roles_of(matched.row) | self.roles_of(matched.to)
        return set(roles_of(self.plain_rows[name], name, self.serving))

    def stage_alarms(self, stage: str) -> Alarms:
        """Return the recipe's alarms with the changes of one stage.

        Raises:
            Refused: a key or value of the stage's own that does not fit.
        """
        alarms: dict[str, Any] = self.alarms.model_dump()
        for name, own in getattr(self.stages, stage).alarms.items():
            own = {"action": own} if isinstance(own, str) else own
            alarms[name] = {**alarms[name], **own} if name in alarms and isinstance(own, dict) else own
        return validated(Alarms, alarms, key=f"stages.{stage}.alarms")

    def model_post_init(self, context: Any) -> None:
        """Keep the recipe's origin, which the loader hands over as the context of the validation."""
        if context is not None:
            self._origin = context

    @classmethod
    def known_keys(cls) -> list[str]:
        return [*cls.model_fields, *SHORT_FORMS]

    @classmethod
    def expanded(cls, data: Any) -> Any:
        """Move the models at the top level under `models`."""
        given = {role: data[role] for role in SHORT_FORMS if role in data} if isinstance(data, dict) else {}
        if not given:
            return data
        rest = {key: value for key, value in data.items() if key not in given}
        models = rest.get("models", {})
        if not isinstance(models, dict):
            return rest
        for role in given.keys() & models.keys():
            raise Refused(
                "This model is given twice.",
                key=role,
                value=given[role],
                remedy=f"Keep one of `{role}:` and `models.{role}`.",
            )
        if models:
            # Validated here, because a fault would be named as one of `models`.
            given = {role: validated(ModelSource, source, key=role) for role, source in given.items()}
        return rest | {"models": given | models}

    @field_validator("name")
    @classmethod
    def _file_name(cls, name: str) -> str:
        if not FILE_NAME.fullmatch(name):
            raise Refused("The name is used for a directory.", value=name, remedy="Use letters, digits, '.', '_', '-'.")
        return name

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if not seeds or len(set(seeds)) != len(seeds):
            raise Refused(
                "Seeds must be a non-empty list without repetition.", value=seeds, remedy="For example [0, 1]."
            )
        return seeds

    @model_validator(mode="after")
    def _one_teacher_for_each_source(self) -> Recipe:
        for role, sources in self.serving.items():
            if role in SHORT_FORMS:
                raise Refused(
                    f"Rows ask the {role} about all problems, so nothing is routed to it by data source.",
                    key=f"models.{role}.serves",
                    value=list(sources),
                    remedy="Let it serve them under another role.",
                )
        require_one_server({role: source.serves for role, source in self.models.items() if source.serves})
        return self

    @model_validator(mode="after")
    def _rows_exist(self) -> Recipe:
        for name in self.chosen_rows:
            if name in ROUTED_ROWS and not self.serving:
                raise Refused(
                    f"Row {name} needs models that serve data sources.",
                    key="rows",
                    value=name,
                    remedy="Add `serves:` to models, as in models: {math: {model: ..., serves: [math_dapo]}}.",
                )
        check_matched(self.matched, self.plain_rows)
        check_rows(self.chosen_rows, "rows", self.row_names)
        if self.published:
            check_rows(self.published, "published", self.row_names)
        return self

    @model_validator(mode="after")
    def _planner_fits(self) -> Recipe:
        if self.planner is not None:
            self.planner.candidates(self.models)
            self.planner.require_problems(self.data.labels)
        return self

    @model_validator(mode="after")
    def _configs_of_hub_models(self) -> Recipe:
        for role, source in self.models.items():
            if source.config is not None and (self.directory / Path(source.model).expanduser()).is_dir():
                raise Refused(
                    "A local model has a config.json of its own.",
                    key=f"models.{role}.config",
                    value=source.config,
                    remedy="Remove it.",
                )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        opd, longest = self.stages.opd, self.data.response_tokens
        if opd is not None and (opd.response_tokens or 0) > longest:
            raise Refused(
                "Stage 2b would sample longer responses than any other stage.",
                key="stages.opd.response_tokens",
                value=opd.response_tokens,
                remedy=f"At most {longest} (data.response_tokens), or leave it out.",
            )
        if opd is not None and opd.prefix is not None and opd.prefix.start >= (opd.response_tokens or longest):
            raise Refused(
                "The prefix starts at the maximal response, so it has no effect.",
                key="stages.opd.prefix.start",
                value=opd.prefix.start,
                remedy=f"Less than {opd.response_tokens or longest} tokens, or leave the prefix out.",
            )
        for name, stage in self.stages:
            if hasattr(stage, "alarms"):
                self.stage_alarms(name)
            if getattr(stage, "validate_every", None) is not None and self.data.validation is None:
                raise Refused(
                    "There is nothing to validate on.",
                    key=f"stages.{name}.validate_every",
                    value=stage.validate_every,
                    remedy="Give data.validation, a parquet of labelled problems for it.",
                )
        return self
