"""Define a recipe: its sections, its rows, and what has to fit between them. `load_recipe` fills it from yaml.

Keys, types and bounds of a section are in the section's own file: data_settings.py, stage_settings.py and others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, field_validator, model_validator

from verl_s2d.recipe.alarm_settings import Alarms
from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.recipe.data_settings import Data
from verl_s2d.recipe.matched import Matched, check_matched
from verl_s2d.recipe.method_rows import MADE_ROWS, METHOD_ROWS, PROMPT_ROWS, ROUTED_ROWS
from verl_s2d.recipe.planner_settings import Planner
from verl_s2d.recipe.rows import DEFAULT_ROWS, FILE_NAME, ROWS, Row, check_rows, own_rows, roles_of, row_name
from verl_s2d.recipe.source import ModelSource, require_one_server
from verl_s2d.recipe.stage_sections import Stages
from verl_s2d.recipe.stage_settings import Evaluation
from verl_s2d.recipe.teacher_rows import teacher_rows
from verl_s2d.validation import Refused, Section, validated

Tracker = Literal["wandb", "tensorboard", "mlflow", "swanlab", "clearml", "trackio"]
"""verl's names of trackers; each is also the name of the package that verl imports for it."""


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
    """Name of the experiment and of its run directory."""
    models: dict[str, ModelSource] = {}
    """Models by role. A role that rows read may stand at the top level: `student:` for `models: {student: ...}`."""
    data: Data
    """Problems and prompts."""
    verifier: str | dict[str, Any]
    """A verifier of verl_s2d.verifiers, alone or with options ({name: math, form: boxed}), or file.py:function beside
    the recipe; or a mapping of data sources to these, {math_dapo: math, taco: file.py:function}."""
    stages: Stages = Stages()
    """Settings of the stages that the rows need."""
    seeds: list[int] = [0]
    """Each seed is one replication of all rows."""
    rows: list[str] = list(DEFAULT_ROWS)
    """Names of rows; [name=]file.py:function adds a row of yours."""
    matched: dict[str, Matched] = {}
    """More rows, by a name of yours: {direct-grpo-same-calls: {row: direct-grpo, to: half-split, by: verifier_calls}}.
    """
    evaluation: Evaluation = Evaluation()
    """Sampling of the evaluation."""
    planner: Planner | None = None
    """Sizes, thresholds and candidates of `probe` and `pilot`; null: the defaults."""
    cluster: Cluster = Cluster()
    """Machines and time limits."""
    alarms: Alarms = Alarms()
    """Responses to failures of training."""
    logger: list[Tracker] = []
    """Trackers that get the metrics of every training stage, as verl names them. The project is the recipe's name, a
    run the stage's; TensorBoard's files are in tensorboard/ of the run directory. Rebuilds nothing."""
    published: dict[str, dict[str, float]] = {}
    """Published avg@k to show beside the rows, in percent: row -> evaluation set -> value."""
    measured: str | None = None
    """Time, machine and size of a run that was measured. `run` and `plan` say it first; null: not measured."""
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
