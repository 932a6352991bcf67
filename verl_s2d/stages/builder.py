"""Build the nodes of a row from a recipe: one method per stage, with the settings that determine its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.recipe.self_proposals import SelfProposals
from verl_s2d.recipe.stage_settings import CoEvolution
from verl_s2d.signals.credit.credit_registry import read_credit
from verl_s2d.stages.average.stage import Average
from verl_s2d.stages.evaluate.stage import Evaluate
from verl_s2d.stages.g_zero.stage import EARLIER, KEYS, LABELLED, GZero
from verl_s2d.stages.grpo.credit_of_node import CREDIT
from verl_s2d.stages.grpo.stage import Grpo
from verl_s2d.stages.prepare.stage import POOL
from verl_s2d.stages.problem_inputs import template_settings
from verl_s2d.stages.row_distillation import RowDistillation
from verl_s2d.stages.row_inputs import Model, stage_name
from verl_s2d.stages.row_settings import sampler_operations
from verl_s2d.stages.shared.batch_settings import TRAIN
from verl_s2d.stages.shared.signal_settings import (
    beside_recipe,
    decisive_keys,
    signal_file,
)
from verl_s2d.teachers.router import TEACHER
from verl_s2d.verl_settings.overrides import value_of
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.identity import External


class Builder(RowDistillation):
    """Builds the nodes of one row: what the functions of recipe/rows.py call."""

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

    @property
    def g_zero(self) -> SelfProposals:
        """Return the settings of the rounds of `g-zero`. Raises UserError if the recipe has none."""
        return self._stage("g_zero")

    def proposals(self, model: Model, *, earlier: Sequence[Node] = (), of: str = "") -> Node:
        """Build the stage in which a model makes prompts without labels (G-Zero).

        Args:
            earlier: rounds before, whose prompts it does not make again.
        """
        stage, data = self.g_zero, self.recipe.data
        batch = value_of(self._fitted("opd", self._stage("opd").verl, POOL, made=True), TRAIN)
        settings = {
            **{key: getattr(stage, key) for key in KEYS if hasattr(stage, key)},
            "least": batch if isinstance(batch, int) else 1,
            "prompt_tokens": data.prompt_tokens,
            "response_tokens": data.response_tokens,
            "temperature": stage.temperature,
            "top_p": stage.top_p,
            **template_settings(self.recipe),
            "seed": self.seed,
        }
        settings |= self._columns()
        inputs = {"model": model, LABELLED: self.slices("all"), **self._problems.of("eval")}
        inputs |= self._problems.of("validation") if data.validation is not None else {}
        inputs |= {f"{EARLIER}.{number}": node for number, node in enumerate(earlier, 1)}
        return self.node(GZero(), stage_name("g-zero", "", of), settings, sampler_operations(stage, settings), **inputs)

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

    def average(self, models: Sequence[Model], *, of: str = "") -> Node:
        """Build the mean of the weights of models that were trained from the same one."""
        roles = {"model" if number == 0 else f"model_{number}": model for number, model in enumerate(models)}
        return self.node(Average(), stage_name("average", "", of), {}, **roles)

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
        operations = sampler_operations(chosen, settings)
        return self.node(Evaluate(), f"evaluate-{self.row}", settings, operations, **inputs)

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
        watched = self._saved_and_watched(key, settings, ruled=steps is None)
        operations = {"save_every": stage.save_every, "verl": operations, **watched}
        slices = self.slices(slice_name)
        inputs = {"model": model, "slices": slices, **self._verifier(settings)}
        if credit is not None:
            inputs[TEACHER], section = credit
            inputs |= self._credit(section, settings, f"stages.{key}.credit")
        if stage.validate_every is not None:
            settings["validate_every"] = stage.validate_every
            inputs |= self._problems.of("validation")
        return self.node(Grpo(), stage_name(name, slice_name, of), settings, operations, **inputs)

    def _credit(self, section: Mapping[str, Any], settings: dict[str, Any], key: str) -> dict[str, External]:
        """Enter a credit into `settings`; return the file of a credit of the recipe's own."""
        credit = read_credit(beside_recipe(section, self.recipe.directory), key=key)
        settings[CREDIT] = decisive_keys(credit)
        file = signal_file(credit)
        return {CREDIT: self._file(f"{key}.type", file)} if file else {}
