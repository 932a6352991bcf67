"""Refuse verl keys that a stage sets itself."""

from __future__ import annotations

from verl_s2d.errors import UserError
from verl_s2d.recipe.schema import Recipe
from verl_s2d.stages.grpo.stage import Grpo
from verl_s2d.stages.opd.stage import Opd
from verl_s2d.stages.warmup.stage import Warmup
from verl_s2d.verl_settings.overrides import bare_key
from verl_s2d.workflow.stage import Stage

STAGE_OF_SECTION = {"teacher_rl": Grpo, "student_rl": Grpo, "warmup": Warmup, "opd": Opd}
"""Section below `stages:` with verl keys -> the stage that it configures."""


def check_reserved_keys(recipe: Recipe) -> None:
    """Raise UserError for a key below `verl:` of a stage that the stage sets itself."""
    for name, stage in STAGE_OF_SECTION.items():
        section = getattr(recipe.stages, name)
        for key, value in section.verl.items() if section else ():
            if remedy := _remedy(stage, bare_key(key)):
                raise UserError(
                    "This key is computed by the workflow: the stage sets it itself.",
                    key=f"stages.{name}.verl.{key}",
                    value=value,
                    remedy=remedy,
                )


def _remedy(stage: type[Stage], key: str) -> str | None:
    """Return the remedy for a reserved key, or a key below one; None for any other."""
    return next((stage.reserved[k] for k in stage.reserved if key == k or key.startswith(f"{k}.")), None)
