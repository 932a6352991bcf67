"""Write the commented yaml of a new recipe, with sizes that fit its data and its machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verl_s2d.starter.measure import Measured
from verl_s2d.starter.recipe_schema import schema_line
from verl_s2d.starter.this_machine import Machine

_SHARE_OF_WEIGHTS, _SHARE_OF_TRAINING, _SHARE_OF_UPDATE = 0.4, 0.35, 0.7
"""Shares of a GPU's memory: for vLLM's weights; for parameters, gradients and Adam beside them; for an update whose
optimizer is on the host."""
_ADAM, _UPDATE, _BF16 = 16, 8, 2
"""Bytes a parameter: fp32 parameter, gradient and both moments; without the moments; vLLM's weights."""
_GIB = 2**30


@dataclass(frozen=True)
class Start:
    """All that a new recipe depends on.

    Attributes:
        train: number of training problems.
        evals: evaluation sets, name -> file.
        prompts: number of prompts without labels.
        steps: steps of every training stage; None: a pass or more over the data.
        guessed: the prompts' length is an estimate.
    """

    name: str
    student: str
    teacher: str
    verifier: str
    train: int
    evals: Mapping[str, str]
    prompt_tokens: int
    response_tokens: int
    machine: Machine
    models: Mapping[str, Measured]
    steps: int | None
    guessed: bool
    prompts: int = 0

    @property
    def half(self) -> int:
        return self.train // 2

    @property
    def batch(self) -> int:
        """Prompts of a step: a power of two that a half of the data has."""
        return 2 ** (min(128 if self.machine.gpus else 8, self.half).bit_length() - 1)

    @property
    def responses(self) -> int:
        """Responses per prompt: those of any number of prompts are shared evenly by the GPUs."""
        return self.shared(8) if self.machine.gpus else 4

    def shared(self, count: int) -> int:
        """Round up to a multiple of the GPUs."""
        gpus = max(1, self.machine.gpus)
        return -(-count // gpus) * gpus

    def parallel(self, role: str) -> int:
        """GPUs that share vLLM's copy of a model."""
        sizes = [size for size in (1, 2, 4, 8) if max(1, self.machine.gpus) % size == 0]
        room = _SHARE_OF_WEIGHTS * self.machine.gpu_memory_gb * _GIB
        parameters = self.models[role].parameters or 0
        return next((size for size in sizes if _BF16 * parameters / size <= room), sizes[-1])

    def offloads(self, role: str) -> bool:
        """Tell whether a model in training has to leave the GPU to the rollout."""
        parameters = self.models[role].parameters or 0
        return _ADAM * parameters / max(1, self.machine.gpus) > _SHARE_OF_TRAINING * self.machine.gpu_memory_gb * _GIB

    def trains(self, role: str) -> bool:
        """Tell whether an update of a model fits the GPUs, with its optimizer on the host."""
        parameters, gpus = self.models[role].parameters or 0, self.machine.gpus
        return not gpus or _UPDATE * parameters / gpus <= _SHARE_OF_UPDATE * self.machine.gpu_memory_gb * _GIB


def recipe_text(start: Start) -> str:
    """Build the yaml text."""
    gpus, batch = start.machine.gpus, start.batch
    per_pass = max(1, start.half // batch)
    rl, opd, warm = (start.steps or per_pass * passes for passes in (10, 2, 4))
    raw = not start.trains("teacher")
    rows = ["cold-student", "direct-grpo", "raw-teacher" if raw else "half-split"]
    rows += ["bridge-more-prompts"] if start.prompts else []
    estimate = ", estimated: no tokenizer was at hand" if start.guessed else ""
    machine = f"{gpus} GPUs of {start.machine.gpu_memory_gb} GB" if gpus else "a CPU"
    lines = [
        schema_line(),
        f"# Written by `verl-s2d init` for {machine}. docs/recipe-reference.md describes every key.",
        f"name: {_yaml(start.name)}",
        f"student: {_yaml(start.student)}",
        f"teacher: {_yaml(start.teacher)}",
        "data:",
        f"  train: data/train.parquet # {start.train} problems",
        f"  eval: {_yaml(dict(start.evals))}",
        "  labels: null # how many labelled problems are used; null: all",
        *(
            [f"  prompts: data/prompts.parquet # {start.prompts} without labels, for stages 2a and 2b"]
            if start.prompts
            else []
        ),
        f"  prompt_tokens: {start.prompt_tokens} # the longest prompt, rounded up{estimate}",
        f"  response_tokens: {start.response_tokens} # longer answers are cut off and score 0",
    ]
    if any(model.thinks for model in start.models.values()):
        lines.append("  chat_template: {enable_thinking: false} # thinking needs many more response_tokens")
    lines += [
        f"verifier: {_yaml(start.verifier)}",
        f"rows: [{', '.join(rows)}] # what is compared; docs/rows.md has the others",
        f"evaluation: {_yaml(_sampler(start, 'student') | {'samples': 16 if gpus else 4})}",
        "stages: # steps and batches: " + _why(start, per_pass),
    ]
    if raw:
        lines.append("  # No teacher_rl: an update of the teacher does not fit this machine.")
    else:
        lines += _stage("teacher_rl", rl, _rl_keys(start, "teacher"))
    lines += [f"  rollouts: {_yaml(_sampler(start, 'teacher'))} # the teacher samples what the warmup reads"]
    lines += _stage("warmup", warm, {"data.train_batch_size": start.shared(min(64, batch))} | _warmup_memory(start))
    lines += _stage("opd", opd, _rl_keys(start, "student", mini=min(64, batch)), "signal: reverse_kl")
    lines += _stage("student_rl", rl, _rl_keys(start, "student"))
    cluster: dict[str, Any] = {"nodes": 1, "gpus_per_node": gpus or 1, "device": start.machine.device}
    cluster |= {"gpu_memory_gb": start.machine.gpu_memory_gb} if gpus else {}
    return "\n".join([*lines, f"cluster: {_yaml(cluster)}"]) + "\n"


def _why(start: Start, per_pass: int) -> str:
    if start.steps:
        return f"{start.steps} are a trial; a pass over a half of the problems is {per_pass} steps"
    return f"a pass over a half of the problems is {per_pass} steps; RL 10, warmup 4, distillation 2 passes"


def _stage(name: str, steps: int, keys: Mapping[str, Any], *more: str) -> list[str]:
    first = [f"  {name}:", f"    steps: {steps}", f"    save_every: {max(1, min(50, steps // 4))}"]
    return [
        *first,
        *(f"    {line}" for line in more),
        "    verl:",
        *(f"      {k}: {_yaml(v)}" for k, v in keys.items()),
    ]


def _rl_keys(start: Start, role: str, mini: int | None = None) -> dict[str, Any]:
    gpus, batch = start.machine.gpus, start.batch
    keys: dict[str, Any] = {
        "data.train_batch_size": mini or batch,
        "actor_rollout_ref.actor.ppo_mini_batch_size": mini or max(1, batch // 4),
        "actor_rollout_ref.rollout.n": start.responses,
    }
    if not gpus:
        return keys
    keys |= {
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.model.enable_gradient_checkpointing": True,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": start.parallel(role),
        "actor_rollout_ref.rollout.gpu_memory_utilization": 0.7,
        "actor_rollout_ref.ref.fsdp_config.model_dtype": "bf16",
    }
    if start.offloads(role) or start.offloads("teacher"):
        section = "actor_rollout_ref.actor.fsdp_config"
        keys |= {f"{section}.param_offload": True, f"{section}.optimizer_offload": True}
    return keys


def _warmup_memory(start: Start) -> dict[str, Any]:
    if not start.machine.gpus:
        return {}
    keys: dict[str, Any] = {
        "engine.strategy": "fsdp2",
        "engine.model_dtype": None,
        "model.enable_gradient_checkpointing": True,
    }
    offload = start.offloads("student") or start.offloads("teacher")
    return keys | ({"engine.param_offload": True, "engine.optimizer_offload": True} if offload else {})


def _sampler(start: Start, role: str) -> dict[str, Any]:
    return {"tensor_parallel_size": start.parallel(role)} if start.machine.gpus else {}


def _yaml(value: Any) -> str:
    """Write a value for yaml's flow style, of which JSON is a part; text bare where yaml reads it as that text."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(entry)}" for key, entry in value.items()) + "}"
    bare = isinstance(value, str) and all(c.isalnum() or c in "/._-:" for c in value) and value[:1] in "/" + _LETTERS
    return value if bare and value.lower() not in _WORDS and not value.endswith(":") else json.dumps(value)


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
