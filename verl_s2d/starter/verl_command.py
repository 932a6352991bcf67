"""Say with which settings a plain verl command runs a stage of this package on a kind of machine.

Overlays and environment are those that a recipe's stages get; there is no second table.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_s2d.platforms.environment import actor_environment, device_environment
from verl_s2d.stages.shared.verl_trainer import STORAGE_UNITS
from verl_s2d.starter.this_machine import this_machine
from verl_s2d.verl_settings.overrides import device_overlay, hydra_arguments, merge, overlay
from verl_s2d.workflow.hosts.ray_places import RL_CPUS_PER_WORKER, Demand, default_storage_units, offered_cpus

STAGES = ("opd", "grpo", "warmup")
DEVICES = {"cpu": "cpu", "gpu": "cuda"}
_PROGRAMS = {"warmup": "verl_s2d.stages.warmup.trainer"}
_TRAINERS = {"grpo": {"trainer.v1.trainer_mode": "s2d_grpo"}}
"""Mode of stages whose overlay, which is also that of verl's own trainer, has none."""
_OWN = {
    "opd": "actor_rollout_ref.model.path=... +s2d.teacher.path=... data.train_files=... data.val_files=...",
    "grpo": "actor_rollout_ref.model.path=... data.train_files=... data.val_files=...",
    "warmup": "model.path=... s2d.teacher.path=... data.train_files=.../rollouts.parquet",
}


@dataclass(frozen=True)
class VerlCommand:
    """Settings of a verl command, in groups.

    Attributes:
        program: module to run.
        environment: variables of the command.
        stage, machine, ray: overrides of the stage, of the kind of machine, and of Ray and the places of workers.
    """

    name: str
    program: str
    environment: Mapping[str, str]
    stage: Mapping[str, Any]
    machine: Mapping[str, Any]
    ray: Mapping[str, Any]

    def lines(self) -> str:
        """Write one setting a line, under a comment for each group."""
        groups = {
            "environment variables, before the command": [f"{k}={shlex.quote(v)}" for k, v in self.environment.items()],
            "the stage, as recipes run it": _quoted(self.stage),
            "this kind of machine": _quoted(self.machine),
            "Ray and the places of workers": _quoted(self.ray),
        }
        parts = ["\n".join([f"# {title}", *lines]) for title, lines in groups.items() if lines]
        return "\n".join([*parts, f"# of your own, behind python -m {self.program}:", f"# {_OWN[self.name]}"])

    def words(self) -> str:
        """Write the beginning of the command in one line, to be used in $(...)."""
        environment = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        overrides = _quoted(merge(self.stage, self.machine, self.ray))
        return " ".join(["env", *environment, "python", "-m", self.program, *overrides])


def verl_command(kind: str, stage: str = "opd", gpus: int | None = None) -> VerlCommand:
    """Collect the settings of one stage on one node.

    Args:
        kind: of machine, `cpu` or `gpu`.
        stage: folder of the stage, one of STAGES.
        gpus: workers; None for this machine's GPUs, at least one.
    """
    device = DEVICES[kind]
    workers = gpus or (this_machine().gpus if device == "cuda" else 0) or 1
    ray: dict[str, Any] = {"trainer.nnodes": 1, "trainer.n_gpus_per_node": workers}
    machine = device_overlay(stage, device)
    if stage != "warmup":
        units = machine.get(STORAGE_UNITS) or default_storage_units(1)
        demand = Demand(1, workers, cpus_per_worker=RL_CPUS_PER_WORKER, storage_units=units)
        ray |= {STORAGE_UNITS: units} if STORAGE_UNITS not in machine else {}
        # Ray takes the numbers of a cluster that it starts, and refuses them for one that it joins.
        if not os.environ.get("RAY_ADDRESS"):
            ray["ray_kwargs.ray_init.num_cpus"] = offered_cpus(demand)
            ray |= {"+ray_kwargs.ray_init.num_gpus": workers} if device == "cpu" else {}
        actors = actor_environment(device)
        ray |= {f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}": value for name, value in actors.items()}
    return VerlCommand(
        stage,
        _PROGRAMS.get(stage, "verl.trainer.main_ppo"),
        device_environment(device),
        merge(_TRAINERS.get(stage, {}), overlay(stage)),
        machine,
        ray,
    )


def _quoted(overrides: Mapping[str, Any]) -> list[str]:
    return [shlex.quote(argument) for argument in hydra_arguments(overrides)]
