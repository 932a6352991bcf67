"""Build the distillation stages of a row: teacher rollouts, 2a, 2b, and the pass rates that weigh their problems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from verl_s2d.data.teacher_prompt import columns_of
from verl_s2d.errors import UserError
from verl_s2d.recipe.stage_settings import ProblemWeights
from verl_s2d.recipe.until import TRAVEL
from verl_s2d.signals.signal import AdvantageSignal, Ask, Signal, reads_scores
from verl_s2d.signals.top_k_kl import STORED, TopK
from verl_s2d.stages.opd.stage import Opd, PrivilegedOpd, ScoredOpd
from verl_s2d.stages.pass_rates.stage import PassRates
from verl_s2d.stages.prepare.stage import parts_of, slice_of
from verl_s2d.stages.problem_inputs import template_settings
from verl_s2d.stages.rollouts.stage import Rollouts
from verl_s2d.stages.row_inputs import Model, stage_name
from verl_s2d.stages.row_settings import RowSettings, sampler_operations
from verl_s2d.stages.shared.batch_settings import rows_read
from verl_s2d.stages.shared.budget import UNTIL
from verl_s2d.stages.shared.problem_weights import PROBLEM_WEIGHTS, RATES
from verl_s2d.stages.shared.signal_settings import (
    SERVES,
    SIGNAL,
    decisive_keys,
    require_answers,
    require_loss,
    require_own_prompt,
    signal_file,
    signal_of_recipe,
)
from verl_s2d.stages.warmup.stage import Warmup
from verl_s2d.teachers.router import TEACHER
from verl_s2d.verifiers.registry import can_extract
from verl_s2d.workflow.graph import Node


class RowDistillation(RowSettings):
    """Adds the stages that learn from frozen models to the settings of a row."""

    def rollouts(
        self, teacher: Model, slice_name: str, *, of: str = "", of_many: int = 1, pool: Node | None = None
    ) -> Node:
        """Sample the teacher's rollouts for stage 2a.

        Args:
            pool: the stage that makes the prompts without labels; None for the recipe's.
            of: tells the stage's name from that of another with the same slice.
            of_many: number of teachers that have an equal share of the rollouts that the warmup reads.
        """
        stage = self._stage("rollouts")
        settings = {
            "slice": parts_of(slice_name)[0],
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
        name = stage_name("rollouts", slice_name, of)
        operations = sampler_operations(stage, settings)
        return self.node(Rollouts(), name, settings, operations, model=teacher, slices=self.prompts(slice_name, pool))

    def _rows_of_warmup(self) -> int:
        warmup = self._stage("warmup")
        verl, _ = self._verl("warmup", warmup.verl, self.recipe.data.response_tokens)
        return rows_read({"steps": warmup.steps, "verl": verl})

    def _stored_tokens(self) -> int:
        """Return the number of likely tokens that the warmup reads at each of its rollouts' tokens; 0 for none."""
        warmup = self.recipe.stages.warmup
        if warmup is None:
            return 0
        signal = self._warmup_signal(warmup.signal)
        return signal.k if isinstance(signal, TopK) else 0

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
            **self._weighted(weights, student, slice_name, stage_name("warmup", "", of), settings),
        }
        return self.node(Warmup(), stage_name("warmup", slice_name, of), settings, operations, **inputs)

    def _warmup_signal(self, section: Mapping[str, Any]) -> Signal:
        key = "stages.warmup.signal"
        signal = signal_of_recipe(section, self.recipe.directory, key=key, default=Warmup.default_signal)
        require_loss(signal, key=key)
        return signal

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
        pool: Node | None = None,
    ) -> Node:
        """Build stage 2b.

        Args:
            pool: the stage that makes the prompts without labels; None for the recipe's.
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
        verl, operations = self._verl(
            "opd", self._fitted("opd", stage.verl, slice_name, made=pool is not None), response, *exact
        )
        settings = {**self._training(stage, slice_name, verl, steps), "signal": decisive_keys(signal)}
        settings["response_tokens"] = response
        if stage.prefix is not None:
            settings["prefix"] = stage.prefix.model_dump()
        watched = self._saved_and_watched("opd", settings, ruled=steps is None)
        operations = {"save_every": stage.save_every, "verl": operations, **watched}
        if servers:
            operations["servers"] = {role: model.model_dump() for role, model in servers.items()}
        # The verifier's scores say more.
        scored = reads_scores(signal)
        parsed = self.recipe.verifier if not scored and can_extract(self.recipe.verifier) else None
        travel = stage.travel or TRAVEL in settings.get(UNTIL, ())
        operations |= {"travel": travel, "parse_rate": parsed}
        kind, reading = ScoredOpd() if scored else Opd(), {"key": key, "value": signal.type}
        if stage.teacher_prompt is not None and (own or "teacher" in signal.asks):
            require_own_prompt(signal, servers, stage.teacher_prompt)
            settings["teacher_prompt"] = stage.teacher_prompt
            if columns_of(stage.teacher_prompt) and not scored:
                kind = PrivilegedOpd()
                reading = {"key": "stages.opd.teacher_prompt", "value": stage.teacher_prompt}
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
        name = stage_name("opd", slice_name, of)
        roles, weights = (
            {**(frozen or {}), **self._teachers(teacher, settings)},
            problem_weights or stage.problem_weights,
        )
        inputs = {
            "model": student,
            "slices": self.slices(slice_name, **reading) if kind.reads_answers else self.prompts(slice_name, pool),
            **self._frozen(signal, roles, key),
            **self._weighted(weights, student, slice_name, stage_name("opd", "", of), settings),
            **(self._verifier(settings) if scored else {}),
        }
        return self.node(kind, name, settings, operations, **inputs)

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

    def pass_rates(self, model: Model, slice_name: str, *, of: str = "") -> Node:
        """Measure a model's pass rates on a slice: its labels are read here."""
        stage = self.recipe.stages.pass_rates
        settings = {
            "slice": parts_of(slice_name)[0],
            "samples": stage.samples,
            "temperature": stage.temperature,
            "top_p": stage.top_p,
            "max_tokens": self.recipe.data.response_tokens,
            **template_settings(self.recipe),
            "seed": self.seed,
        }
        name = stage_name("pass-rates", slice_name, of)
        inputs = {"model": model, "slices": self.slices(slice_name, key="problem_weights"), **self._verifier(settings)}
        return self.node(PassRates(), name, settings, sampler_operations(stage, settings), **inputs)

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
