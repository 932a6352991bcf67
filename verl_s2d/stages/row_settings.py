"""Read the settings of a row's training stages from a recipe: batches, verl's keys, checkpoints, alarms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.recipe.engine_settings import split_engine
from verl_s2d.stages.prepare.stage import labelled_part, parts_of
from verl_s2d.stages.problem_inputs import template_settings
from verl_s2d.stages.row_inputs import RowInputs
from verl_s2d.stages.shared.batch_settings import TRAIN, fitting_batches, micro_batch_tokens
from verl_s2d.stages.shared.budget import UNTIL
from verl_s2d.verl_settings.overrides import by_sequences, device_overlay, merge, overlay, split_operational, value_of


class RowSettings(RowInputs):
    """Adds the settings of training stages to the inputs of a row."""

    def _stage(self, key: str) -> Any:
        stage = getattr(self.recipe.stages, key)
        if stage is None:
            raise UserError(
                f"Row {self.row} needs this stage.",
                key=f"stages.{key}",
                remedy=f"Add `{key}:` under stages, or leave the row out.",
            )
        return stage

    def steps(self, *stages: str) -> int:
        """Add up the steps that the recipe gives these stages."""
        return sum(self._stage(key).steps for key in stages)

    def _fitted(self, kind: str, chosen: Mapping[str, Any], slice_name: str, *, made: bool = False) -> dict[str, Any]:
        """Add batch sizes that fit the slice to the recipe's keys, where it has none.

        Args:
            made: a stage makes the prompts, so that their number is not known yet.
        """
        data, (part, sources) = self.recipe.data, parts_of(slice_name)
        known = data.labels is not None or data.train is not None
        needed = value_of(chosen, TRAIN) is None
        if made:
            problems = None
        elif labelled_part(part) != part:
            problems = self._pool_size(slice_name) if needed else None
        elif sources:
            problems = self._sizes_of(sources)[part] if data.train is not None and needed else None
        else:
            problems = self.slice_sizes()[part] if known and needed else None
        return merge(fitting_batches(chosen, overlay(kind), problems), chosen)

    def _verl(
        self, kind: str, chosen: Mapping[str, Any], response: int, *more: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Merge overlays and the recipe's keys, split into (decisive, operational).

        Args:
            response: maximal number of tokens of a response.
            more: further variants of the stage's overlay.
        """
        tokens = micro_batch_tokens(kind, self.recipe.data.prompt_tokens + response)
        layers = [
            overlay(kind),
            *(overlay(kind, variant) for variant in more),
            tokens,
            device_overlay(kind, self.device),
        ]
        return split_operational(merge(*layers, by_sequences(chosen), chosen))

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

    def _saved_and_watched(self, key: str, settings: dict[str, Any], *, ruled: bool = True) -> dict[str, Any]:
        """Return the stage's alarms, minutes between checkpoints and trackers, for its operations.

        What may end the stage early is entered into `settings`: the rules of `until`, and alarms that stop it, together
        with `save_every`: they determine which checkpoint is the result. Such a stage saves by steps alone, or its
        result would depend on the clock.

        Args:
            ruled: the rules hold: the row does not give the stage another number of steps.
        """
        if ruled and (until := self._stage(key).until) is not None:
            settings[UNTIL] = until.written()
        alarms = self.recipe.stage_alarms(key).model_dump()
        stopping = {name: alarm for name, alarm in alarms.items() if alarm["action"] == "stop"}
        if stopping:
            settings["stopped_by"] = {"alarms": stopping, "save_every": self._stage(key).save_every}
        minutes = None if stopping else self._stage(key).save_minutes
        return {"alarms": alarms, "save_minutes": minutes, "trackers": self.recipe.logger, "project": self.recipe.name}


def sampler_operations(section: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Collect the operations of a sampling stage; enter those keys of `engine:` that decide samples into `settings`."""
    decisive, operational = split_engine(section.engine)
    if decisive:
        settings["engine"] = decisive
    return {"tensor_parallel_size": section.tensor_parallel_size, "engine": operational}
