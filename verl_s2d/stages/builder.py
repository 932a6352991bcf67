"""Build the nodes of a row from a recipe: one method per stage, with the settings that determine its result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verl_s2d.data.teacher_prompt import columns_of
from verl_s2d.errors import UserError
from verl_s2d.recipe.engine_settings import split_engine
from verl_s2d.recipe.schema import Recipe
from verl_s2d.recipe.source import DataScript, ModelSource
from verl_s2d.recipe.stage_settings import CoEvolution, ProblemWeights
from verl_s2d.signals.credit.credit_registry import read_credit
from verl_s2d.signals.signal import AdvantageSignal, Ask, Signal, reads_scores
from verl_s2d.signals.top_k_kl import STORED, TopK
from verl_s2d.stages.average.stage import Average
from verl_s2d.stages.evaluate.stage import Evaluate
from verl_s2d.stages.grpo.credit_of_node import CREDIT, TEACHER
from verl_s2d.stages.grpo.stage import Grpo
from verl_s2d.stages.opd.stage import Opd, PrivilegedOpd, ScoredOpd
from verl_s2d.stages.pass_rates.stage import PassRates
from verl_s2d.stages.prepare.overlong import DROP, REFUSE
from verl_s2d.stages.prepare.stage import SOURCES, Script, Slices, parts_of, slice_of, slice_sizes
from verl_s2d.stages.problem_inputs import ProblemInputs, column_names, template_settings
from verl_s2d.stages.rollouts.stage import Rollouts
from verl_s2d.stages.shared.batch_settings import TRAIN, fitting_batches, micro_batch_tokens, rows_read
from verl_s2d.stages.shared.problem_weights import PROBLEM_WEIGHTS, RATES
from verl_s2d.stages.shared.signal_settings import (
    SERVES,
    SIGNAL,
    beside_recipe,
    decisive_keys,
    require_answers,
    require_loss,
    require_own_prompt,
    signal_file,
    signal_of_recipe,
)
from verl_s2d.stages.warmup.stage import Warmup
from verl_s2d.verifiers.registry import can_extract
from verl_s2d.verl_settings.overrides import by_sequences, merge, overlay, split_operational, value_of
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.identity import External, file_external, files_external, model_external
from verl_s2d.workflow.stage import Stage

Model = Node | External


class Builder:
    """Builds the nodes of one row. Identities of files are computed once and shared through `externals`."""

    def __init__(
        self,
        recipe: Recipe,
        row: str,
        seed: int,
        device: str,
        externals: dict[Any, External],
        *,
        several_seeds: bool = False,
    ):
        self.recipe, self.row, self.seed, self.device = recipe, row, seed, device
        self._externals, self._several_seeds = externals, several_seeds
        self._problems = ProblemInputs(recipe, self._file, self._source, self._model, self.node)

    def model(self, role: str) -> Model:
        """Return the recipe's model of a role, or the stage whose script makes it.

        Raises:
            UserError: the recipe has none, or it cannot be read.
        """
        source = self.recipe.models.get(role)
        if source is None:
            remedy = f"Add `{role}:` under `models:`, or leave the row out."
            raise UserError(f"A model required by row {self.row} is missing.", key=f"models.{role}", remedy=remedy)
        return self._model(source, role)

    @property
    def serving(self) -> Mapping[str, tuple[str, ...]]:
        """Map role -> data sources that its model serves."""
        return self.recipe.serving

    @property
    def copd(self) -> CoEvolution:
        """Return the settings of the rounds of `copd`.

        Raises:
            UserError: the recipe has none, or fewer than two branches.
        """
        if len(self.serving) < 2:
            raise UserError(
                f"The branches of row {self.row} are the models that serve data sources, and one branch has no peer.",
                key="models",
                value=dict(self.serving),
                remedy="Add `serves:` to a second model, or leave the row out.",
            )
        return self._stage("copd")

    def teacher_rl(self, model: Model, slice_name: str, *, of: str = "") -> Node:
        return self._grpo("teacher_rl", "teacher-rl", model, slice_name, of=of)

    def student_rl(
        self,
        model: Model,
        slice_name: str,
        *,
        teacher: Model | None = None,
        credit: Mapping[str, Any] | None = None,
        of: str = "",
        steps: int | None = None,
    ) -> Node:
        """Build Stage 3.

        Args:
            steps: None for the recipe's.
            teacher: the model that a credit asks; without one the stage is plain GRPO.
            credit: {type: kdrl, beta: 0.1}; None for the recipe's, stages.student_rl.credit, which may be none.
        """
        chosen = self._stage("student_rl").credit if credit is None else credit
        asked = (teacher, chosen) if teacher is not None and chosen else None
        return self._grpo("student_rl", "student-rl", model, slice_name, of=of, credit=asked, steps=steps)

    def rollouts(self, teacher: Model, slice_name: str, *, of: str = "", of_many: int = 1) -> Node:
        """Sample the teacher's rollouts for stage 2a.

        Args:
            of: tells the stage's name from that of another with the same slice.
            of_many: number of teachers that have an equal share of the rollouts that the warmup reads.
        """
        stage = self._stage("rollouts")
        part, sources = parts_of(slice_name)
        settings = {
            "slice": part,
            **(
                {"per_prompt": stage.per_prompt}
                if stage.per_prompt
                else {"rows": math.ceil(self._rows_of_warmup() / of_many)}
            ),
            "temperature": stage.temperature,
            "top_p": stage.top_p,
            "top_k": stage.top_k,
            "response_tokens": self.recipe.data.response_tokens,
            **template_settings(self.recipe),
            "seed": self.seed,
        }
        if k := self._stored_tokens():
            settings["log_probs"] = k
        name = _name("rollouts", slice_name, of)
        operations = _sampler(stage, settings)
        return self.node(Rollouts(), name, settings, operations, model=teacher, slices=self.slices(sources))

    def _rows_of_warmup(self) -> int:
        warmup = self._stage("warmup")
        verl, _ = self._verl("warmup", warmup.verl, self.recipe.data.response_tokens)
        return rows_read({"steps": warmup.steps, "verl": verl})

    def pass_rates(self, model: Model, slice_name: str, *, of: str = "") -> Node:
        """Measure a model's pass rates on a slice: its labels are read here."""
        stage = self.recipe.stages.pass_rates
        part, sources = parts_of(slice_name)
        settings = {
            "slice": part,
            "samples": stage.samples,
            "temperature": stage.temperature,
            "top_p": stage.top_p,
            "max_tokens": self.recipe.data.response_tokens,
            **template_settings(self.recipe),
            "seed": self.seed,
        }
        inputs = {"model": model, "slices": self.slices(sources), **self._verifier(settings)}
        name = _name("pass-rates", slice_name, of)
        return self.node(PassRates(), name, settings, _sampler(stage, settings), **inputs)

    def _weighted(
        self, chosen: ProblemWeights | None, model: Model, slice_name: str, of: str, settings: dict[str, Any]
    ) -> dict[str, Node]:
        """Enter a stage's problem weights into its settings; return the pass rates that they are made of.

        Args:
            model: the model that the stage trains, whose pass rates count.
        """
        if chosen is None:
            return {}
        settings[PROBLEM_WEIGHTS] = chosen.model_dump()
        return {RATES: self.pass_rates(model, slice_name, of=of)}

    def _stored_tokens(self) -> int:
        """Return the number of likely tokens that the warmup reads at each of its rollouts' tokens; 0 for none."""
        warmup = self.recipe.stages.warmup
        if warmup is None:
            return 0
        signal = self._warmup_signal(warmup.signal)
        return signal.k if isinstance(signal, TopK) else 0

    def _warmup_signal(self, section: Mapping[str, Any]) -> Signal:
        key = "stages.warmup.signal"
        signal = signal_of_recipe(section, self.recipe.directory, key=key, default=Warmup.default_signal)
        require_loss(signal, key=key)
        return signal

    def warmup(
        self,
        student: Model,
        teacher: Model | Mapping[str, Model],
        rollouts: Node | Mapping[str, Node],
        *,
        of: str = "",
        problem_weights: ProblemWeights | None = None,
    ) -> Node:
        """Build stage 2a.

        Args:
            teacher: one, or those of some data sources, by role (`serving`).
            rollouts: of the teacher, from `rollouts`; of each, by its role.
            of: tells the stage's name from that of another with the same slice.
            problem_weights: those of the row; None for the recipe's.
        """
        stage, key = self._stage("warmup"), "stages.warmup.signal"
        signal = self._warmup_signal(stage.signal)
        verl, operations = self._verl("warmup", stage.verl, self.recipe.data.response_tokens)
        settings = {"signal": decisive_keys(signal), "steps": stage.steps, "seed": self.seed, "verl": verl}
        operations = {"save_every": stage.save_every, "verl": operations, **self._saved_and_watched("warmup", settings)}
        weights = problem_weights or stage.problem_weights
        if isinstance(rollouts, Mapping):
            first, *others = rollouts
            caches = {"rollouts": rollouts[first], **{f"rollouts.{role}": rollouts[role] for role in others}}
            slice_name = parts_of(slice_of(rollouts[first]))[0]
        else:
            caches, slice_name = {"rollouts": rollouts}, slice_of(rollouts)
        inputs = {
            "model": student,
            **caches,
            **self._frozen(signal, self._teachers(teacher, settings), key, STORED),
            **self._weighted(weights, student, slice_name, _name("warmup", "", of), settings),
        }
        return self.node(Warmup(), _name("warmup", slice_name, of), settings, operations, **inputs)

    def opd(
        self,
        student: Model,
        teacher: Model | Mapping[str, Model],
        slice_name: str,
        *,
        of: str = "",
        signal: Mapping[str, Any] | None = None,
        frozen: Mapping[str, Model] | None = None,
        problem_weights: ProblemWeights | None = None,
        steps: int | None = None,
    ) -> Node:
        """Build stage 2b.

        Args:
            teacher: one, or those of some data sources, by role (`serving`).
            of: tells the stage's name from that of another with the same slice.
            signal: section {type: ..., ...} that replaces the recipe's.
            frozen: models by role that the signal may ask beside the teacher, instead of the recipe's.
            problem_weights, steps: those of the row; None for the recipe's.
        """
        stage, key = self._stage("opd"), "stages.opd.signal"
        section = stage.signal if signal is None else signal
        own = signal is None
        signal = signal_of_recipe(section, self.recipe.directory, key=key, default=Opd.default_signal)
        played = {role: role for role in signal.asks}
        if isinstance(teacher, Mapping) and played.pop("teacher", None):
            played |= dict.fromkeys(teacher, "teacher")
        # Servers of models that only other rows ask are theirs.
        others = {role for role, source in self.recipe.models.items() if source.serves}
        others |= set() if own and not isinstance(teacher, Mapping) else set(stage.servers)
        servers = {role: s for role, s in stage.servers.items() if role in played or role not in others}
        require_answers(signal, servers, roles=played, stage="stages.opd")
        response = stage.response_tokens or self.recipe.data.response_tokens
        # An exact divergence does not read the sampler's log-probabilities.
        exact = [] if isinstance(signal, AdvantageSignal) else ["exact"]
        verl, operations = self._verl("opd", self._fitted("opd", stage.verl, slice_name), response, *exact)
        settings = {**self._training(stage, slice_name, verl, steps), "signal": decisive_keys(signal)}
        settings["response_tokens"] = response
        if stage.prefix is not None:
            settings["prefix"] = stage.prefix.model_dump()
        operations = {"save_every": stage.save_every, "verl": operations, **self._saved_and_watched("opd", settings)}
        if servers:
            operations["servers"] = {role: model.model_dump() for role, model in servers.items()}
        # The verifier's scores say more.
        scored = reads_scores(signal)
        parsed = self.recipe.verifier if not scored and can_extract(self.recipe.verifier) else None
        operations |= {"travel": stage.travel, "parse_rate": parsed}
        kind = ScoredOpd() if scored else Opd()
        if stage.teacher_prompt is not None and (own or "teacher" in signal.asks):
            require_own_prompt(signal, servers, stage.teacher_prompt)
            settings["teacher_prompt"] = stage.teacher_prompt
            kind = PrivilegedOpd() if columns_of(stage.teacher_prompt) and not scored else kind
        if stage.teacher_refresh is not None:
            if teacher is not student or "teacher" in servers or "teacher" not in signal.asks:
                raise UserError(
                    f"In row {self.row} the teacher of stage 2b is not the student that it starts from, so it cannot "
                    "become the student of a later step.",
                    key="stages.opd.teacher_refresh",
                    value=stage.teacher_refresh,
                    remedy="Leave it out, or compare rows whose student is its own teacher, such as self-teacher.",
                )
            settings["teacher_refresh"] = stage.teacher_refresh
        roles, weights = (
            {**(frozen or {}), **self._teachers(teacher, settings)},
            problem_weights or stage.problem_weights,
        )
        inputs = {
            "model": student,
            "slices": self.slices(parts_of(slice_name)[1]),
            **self._frozen(signal, roles, key),
            **self._weighted(weights, student, slice_name, _name("opd", "", of), settings),
            **(self._verifier(settings) if scored else {}),
        }
        return self.node(kind, _name("opd", slice_name, of), settings, operations, **inputs)

    def _teachers(self, teacher: Model | Mapping[str, Model], settings: dict[str, Any]) -> dict[str, Model]:
        """Return the teachers by role; enter the data sources of several into a stage's settings."""
        if not isinstance(teacher, Mapping):
            return {TEACHER: teacher}
        settings[SERVES] = {role: list(self.serving[role]) for role in teacher}
        return dict(teacher)

    def _frozen(
        self, signal: Signal, given: Mapping[str, Model], key: str, stored: tuple[Ask, ...] = ()
    ) -> dict[str, Model]:
        """Collect the inputs of a signal: its frozen models by role, and the file of a recipe's own signal.

        Raises:
            UserError: the recipe has no model of a role, or a role is the name of another input.
        """
        for role in {*signal.asks, *given} & {"model", "slices", "rollouts", RATES, "verifier", SIGNAL}:
            raise UserError(
                "Stages have another input of this name, so no frozen model can have it as its role.",
                key=key,
                value=role,
                remedy="Rename the role here and under `models:`.",
            )
        read: dict[str, Model] = {}
        for role in signal.models(stored):
            if role == TEACHER and TEACHER not in given:
                read |= {one: given[one] for one in self.serving if one in given}
            else:
                read[role] = given[role] if role in given else self.model(role)
        if file := signal_file(signal):
            read[SIGNAL] = self._file(f"{key}.type", file)
        return read

    def average(self, models: Sequence[Model], *, of: str = "") -> Node:
        """Build the mean of the weights of models that were trained from the same one."""
        roles = {"model" if number == 0 else f"model_{number}": model for number, model in enumerate(models)}
        return self.node(Average(), _name("average", "", of), {}, **roles)

    def evaluate(self, model: Model) -> Node:
        chosen = self.recipe.evaluation
        settings = {
            "samples": chosen.samples,
            "temperature": chosen.temperature,
            "top_p": chosen.top_p,
            "max_tokens": chosen.max_tokens or self.recipe.data.response_tokens,
            **template_settings(self.recipe),
            "seed": self.seed,
        }
        settings |= self._columns()
        inputs = {"model": model, **self._problems.of("eval"), **self._verifier(settings)}
        operations = _sampler(chosen, settings)
        return self.node(Evaluate(), f"evaluate-{self.row}", settings, operations, **inputs)

    def slices(self, sources: Sequence[str] = ()) -> Node:
        """Build the slices of the labels; with `sources`, of the problems from these data sources among them."""
        data = self.recipe.data
        inputs, limited = self._problems.of("train"), data.overlong_prompts != REFUSE
        if data.validation is not None and not limited and not self._as_verl("data.validation", data.validation):
            inputs["validation"] = self._file("data.validation", data.validation)
        settings = {"labels": data.labels, "seed": self.seed, **self._columns()}
        if sources:
            settings[SOURCES] = list(sources)
        return self.node(Slices(), _name("slices", ",".join(sources), ""), settings, **inputs)

    def _columns(self) -> dict[str, dict[str, str]]:
        """Return the setting of the columns' names; none where a stage has read the files before."""
        return column_names(self.recipe) if self.recipe.data.overlong_prompts == REFUSE else {}

    def _as_verl(self, key: str, name: str) -> bool:
        """Tell whether verl reads a data file itself, and not what the slices make of it."""
        from verl_s2d.data.formats.data_files import read_any
        from verl_s2d.data.formats.verl_columns import is_verl

        if self.recipe.data.columns is not None:
            return False
        path = self.recipe.directory / name
        return self._once((key, "verl"), lambda: path.suffix == ".parquet" and is_verl(read_any(path, key=key)))

    def slice_sizes(self) -> dict[str, int]:
        """Map slice name -> number of problems, from the recipe and its files alone.

        Raises:
            UserError: the number of training problems is known only after a stage has run, and the recipe gives none.
        """
        data = self.recipe.data
        if data.labels is not None:
            return slice_sizes(data.labels)
        if data.train is None or data.overlong_prompts == DROP:
            raise UserError(
                "Matching rows by labels needs their number in advance.",
                key="data.labels",
                value=None,
                remedy="Set it to the number of labelled problems to use.",
            )
        from verl_s2d.data.formats.data_files import row_count

        return slice_sizes(row_count(self.recipe.directory / data.train, key="data.train"))

    def _grpo(
        self,
        key: str,
        name: str,
        model: Model,
        slice_name: str,
        *,
        of: str = "",
        credit: tuple[Model, Mapping[str, Any]] | None = None,
        steps: int | None = None,
    ) -> Node:
        stage = self._stage(key)
        chosen = self._fitted("grpo", stage.verl, slice_name)
        verl, operations = self._verl("grpo", chosen, self.recipe.data.response_tokens)
        settings = self._training(stage, slice_name, verl, steps)
        operations = {"save_every": stage.save_every, "verl": operations, **self._saved_and_watched(key, settings)}
        slices = self.slices(parts_of(slice_name)[1])
        inputs = {"model": model, "slices": slices, **self._verifier(settings)}
        if credit is not None:
            inputs[TEACHER], section = credit
            inputs |= self._credit(section, settings, f"stages.{key}.credit")
        if stage.validate_every is not None:
            settings["validate_every"] = stage.validate_every
            inputs |= self._problems.of("validation")
        return self.node(Grpo(), _name(name, slice_name, of), settings, operations, **inputs)

    def _credit(self, section: Mapping[str, Any], settings: dict[str, Any], key: str) -> dict[str, External]:
        """Enter a credit into `settings`; return the file of a credit of the recipe's own."""
        credit = read_credit(beside_recipe(section, self.recipe.directory), key=key)
        settings[CREDIT] = decisive_keys(credit)
        file = signal_file(credit)
        return {CREDIT: self._file(f"{key}.type", file)} if file else {}

    def _training(self, stage: Any, slice_name: str, verl: dict[str, Any], steps: int | None) -> dict[str, Any]:
        data = self.recipe.data
        return {
            "slice": parts_of(slice_name)[0],
            "steps": steps or stage.steps,
            "prompt_tokens": data.prompt_tokens,
            "response_tokens": data.response_tokens,
            **template_settings(self.recipe),
            "seed": self.seed,
            "verl": verl,
        }

    def _saved_and_watched(self, key: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the stage's alarms and minutes between checkpoints, for its operations.

        Alarms that stop the stage are entered into `settings` together with `save_every`: they determine which
        checkpoint is the result. Such a stage saves by steps alone, or its result would depend on the clock.
        """
        alarms = self.recipe.stage_alarms(key).model_dump()
        stopping = {name: alarm for name, alarm in alarms.items() if alarm["action"] == "stop"}
        if stopping:
            settings["stopped_by"] = {"alarms": stopping, "save_every": self._stage(key).save_every}
        return {"alarms": alarms, "save_minutes": None if stopping else self._stage(key).save_minutes}

    def _stage(self, key: str) -> Any:
        stage = getattr(self.recipe.stages, key)
        if stage is None:
            raise UserError(
                f"Row {self.row} needs this stage.",
                key=f"stages.{key}",
                remedy=f"Add `{key}:` under stages, or leave the row out.",
            )
        return stage

    def _fitted(self, kind: str, chosen: Mapping[str, Any], slice_name: str) -> dict[str, Any]:
        """Add batch sizes that fit the slice to the recipe's keys, where it has none."""
        data, (part, sources) = self.recipe.data, parts_of(slice_name)
        known = data.labels is not None or data.train is not None
        needed = value_of(chosen, TRAIN) is None
        if sources:
            problems = self._sizes_of(sources)[part] if data.train is not None and needed else None
        else:
            problems = self.slice_sizes()[part] if known and needed else None
        return merge(fitting_batches(chosen, overlay(kind), problems), chosen)

    def _sizes_of(self, sources: Sequence[str]) -> dict[str, int]:
        """Map slice name -> number of its problems from these data sources, as far as no prompt is dropped."""
        from verl_s2d.data.problems import read_problems
        from verl_s2d.data.slices import slices_of

        data = self.recipe.data
        path = self.recipe.directory / data.train
        problems = self._once(
            ("data.train", "problems"), lambda: read_problems(path, key="data.train", columns=data.columns)
        )
        return {name: len(ids) for name, ids in slices_of(problems, data.labels, self.seed, sources).items()}

    def _verl(
        self, kind: str, chosen: Mapping[str, Any], response: int, *more: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Merge overlays and the recipe's keys, split into (decisive, operational).

        Args:
            response: maximal number of tokens of a response.
            more: further variants of the stage's overlay.
        """
        tokens = micro_batch_tokens(kind, self.recipe.data.prompt_tokens + response)
        layers = [overlay(kind), *(overlay(kind, variant) for variant in more), tokens]
        if self.device == "cpu":
            # The warmup's configuration has none of verl's RL keys.
            layers.append(overlay("cpu", "warmup" if kind == "warmup" else ""))
        return split_operational(merge(*layers, by_sequences(chosen), chosen))

    def _verifier(self, settings: dict[str, Any]) -> dict[str, External]:
        """Enter the verifier into `settings`; return the file of a recipe's own verifier."""
        name = self.recipe.verifier
        if not isinstance(name, str):
            settings["verifier"] = json.dumps(name, sort_keys=True)
            return {}
        file, colon, function = name.rpartition(":")
        settings["verifier"] = function if colon else name
        return {"verifier": self._file("verifier", file)} if colon else {}

    def _source(self) -> Node:
        return self._script(self.recipe.data.source, "data", "data.source")

    def _model(self, source: ModelSource, role: str) -> Model:
        if source.script is not None:
            return self._script(source, "model", role, trust_remote_code=source.trust_remote_code)
        directory = self.recipe.directory
        trusted = source.trust_remote_code
        return self._once(
            (role, "model"),
            lambda: model_external(source.model, source.revision, directory, role, trust_remote_code=trusted),
        )

    def _script(
        self, source: DataScript | ModelSource, makes: str, key: str, *, trust_remote_code: bool = False
    ) -> Node:
        args = {name: self.seed if value == "{seed}" else value for name, value in source.args.items()}
        files = [self.recipe.directory / name for name in (source.script, *source.uses)]
        external = self._once((key, "script"), lambda: files_external(files, f"{key}.script", source.script))
        name = key.partition(".")[0]
        settings: dict[str, Any] = {"args": args, "makes": makes}
        if trust_remote_code:
            settings["trust_remote_code"] = True
        return self.node(Script(), name, settings, seeded=args != source.args, script=external)

    def _file(self, key: str, name: str) -> External:
        return self._once((key, name), lambda: file_external(self.recipe.directory / name, key, name))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._externals:
            self._externals[key] = make()
        return self._externals[key]

    def node(
        self,
        stage: Stage,
        name: str,
        settings: Mapping[str, Any],
        operations: Mapping[str, Any] | None = None,
        /,
        seeded: bool = True,
        **inputs: Any,
    ) -> Node:
        """Build the node of a stage, which may be one of a recipe's own.

        Args:
            name: shown to users, unique within the row.
            settings, operations: as in Node.
            seeded: the result depends on the row's seed.
            inputs: role -> node or external.
        """
        several = self._several_seeds and seeded
        return Node(
            stage=stage,
            name=f"{name} (seed {self.seed})" if several else name,
            settings=settings,
            operations=operations or {},
            inputs={role: x for role, x in inputs.items() if isinstance(x, Node)},
            externals={role: x for role, x in inputs.items() if isinstance(x, External)},
        )


def _sampler(section: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Collect the operations of a sampling stage; enter those keys of `engine:` that decide samples into `settings`."""
    decisive, operational = split_engine(section.engine)
    if decisive:
        settings["engine"] = decisive
    return {"tensor_parallel_size": section.tensor_parallel_size, "engine": operational}


def _name(stage: str, slice_name: str, of: str) -> str:
    """Name a stage by its kind, its slice, and a suffix where both repeat."""
    return "-".join(filter(None, (stage, slice_name, of)))
