"""Make tiny real verl commands: the overlays of recipes, and batch sizes for the checkpoints of support/tiny.py."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from verl_s2d.verl_settings.overrides import hydra_arguments, merge, overlay

SIZES: dict[str, Any] = {
    "data.train_batch_size": 8,
    "data.max_prompt_length": 8,
    "data.max_response_length": 8,
    "actor_rollout_ref.rollout.n": 4,
    "actor_rollout_ref.rollout.max_model_len": 32,
    "actor_rollout_ref.rollout.max_num_batched_tokens": 512,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
}


def verl_command(
    kind: str, *, student: Path, data: Path, out: Path, steps: int, overrides: Mapping[str, Any] | None = None
) -> list[str]:
    """`python -m verl.trainer.main_ppo ...` on a CPU.

    Args:
        kind: folder of the overlay under verl_s2d/stages, `grpo` or `opd`.
        student: checkpoint that is trained.
        data: parquet with at least 8 problems.
        out: directory for whatever the run writes.
        overrides: more dotted keys; they win.
    """
    chosen = {
        "actor_rollout_ref.model.path": str(student),
        "data.train_files": str(data),
        "data.val_files": str(data),
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": steps,
        "trainer.n_gpus_per_node": 1,
        "trainer.nnodes": 1,
        "trainer.save_freq": -1,
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": str(out / "checkpoints"),
        "trainer.logger": ["console", "file"],
        # The trainer is a Ray actor: it inherits the environment of the cluster, not that of this command.
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl"),
        "hydra.run.dir": str(out / "hydra"),
    }
    merged = merge(overlay(kind), overlay("cpu"), SIZES, chosen, overrides or {})
    return [sys.executable, "-m", "verl.trainer.main_ppo", *hydra_arguments(merged)]


def composed(*changes: str, **chosen: object) -> DictConfig:
    """verl's own configuration under the overlays of stage 2b and a CPU."""
    base = merge(overlay("opd"), overlay("cpu"), SIZES, {"+s2d.teacher.path": "teacher"}, chosen)
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*hydra_arguments(base), *changes])
