"""Write the recipe of part `stages`: one row with every kind of stage, and its own problems and verifier, no hub."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from verl_s2d.gpu_check import part_models
from verl_s2d.gpu_check.part_settings import Settings

STEPS = {"teacher_rl": 2, "warmup": 2, "opd": 3}
"""Steps of each stage. 2b has three, so that a kill after its first step interrupts the second."""
_VERIFIER = '''"""Scores a response by its length: a random model gets about half of them right, so rewards differ."""


def score(data_source, solution_str, ground_truth, extra_info=None):
    """Return 1.0 for an even number of words."""
    return float(len(solution_str.split()) % 2 == 0)
'''
_LABELLED, _EVALUATION = 16, 4
_SHARE = 0.5
"""Fraction of the GPU's memory for vLLM; a desktop may use the rest."""


def write_recipe(settings: Settings) -> Path:
    """Write recipe, problems and verifier into the scratch directory; returns the recipe's file."""
    directory = settings.scratch / "stages"
    directory.mkdir(exist_ok=True)
    (directory / "verifier.py").write_text(_VERIFIER)
    rows = _problems(_LABELLED + _EVALUATION)
    for name, part in (("train", rows[:_LABELLED]), ("sums", rows[_LABELLED:])):
        pq.write_table(pa.Table.from_pylist(part), directory / f"{name}.parquet")
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(_recipe(settings), sort_keys=False))
    return path


def _problems(count: int) -> list[dict[str, Any]]:
    """Make distinct sums in verl's columns."""
    pairs = random.Random(0).sample([(a, b) for a in range(10) for b in range(10)], count)
    return [
        {
            "prompt": [{"role": "user", "content": f"{a} + {b} ="}],
            "data_source": "sums",
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
            "extra_info": {"index": f"sum-{a}-{b}"},
        }
        for a, b in pairs
    ]


def _recipe(settings: Settings) -> dict[str, Any]:
    cpu = settings.on_cpu
    prompt, response = (8, 6) if cpu else (128, 512)
    samples = 2 if cpu else 8
    reinforced = _training(settings, prompt + response, samples)
    distilled = dict(reinforced)
    distilled |= {} if cpu else {"actor_rollout_ref.ref.fsdp_config.param_offload": True}
    warmed: dict[str, Any] = {"data.train_batch_size": 8, "optim.lr": 1.0e-5}
    warmed |= {"data.use_dynamic_bsz": True, "data.max_token_len_per_gpu": 8 * (prompt + response)}
    warmed |= {} if cpu else {"engine.strategy": "fsdp2"}
    engine = {} if cpu else {"gpu_memory_utilization": _SHARE}
    stages = {
        "teacher_rl": {"steps": STEPS["teacher_rl"], "save_every": 1, "verl": reinforced},
        "rollouts": {"per_prompt": samples, "temperature": 1.0, "engine": engine},
        "warmup": {"steps": STEPS["warmup"], "save_every": 1, "signal": "forward_kl", "verl": warmed},
        "opd": {"steps": STEPS["opd"], "save_every": 1, "signal": "reverse_kl", "verl": distilled},
    }
    return {
        "name": "gpu-check",
        "seeds": [0],
        "student": {"model": str(part_models.student(settings))},
        "teacher": {"model": str(part_models.teacher(settings))},
        "data": {
            "train": "train.parquet",
            "eval": {"sums": "sums.parquet"},
            "prompt_tokens": prompt,
            "response_tokens": response,
        },
        "verifier": "verifier.py:score",
        "rows": ["full-bridge"],
        "evaluation": {"samples": samples, "temperature": 1.0, "top_p": 1.0, "engine": engine},
        "stages": stages,
        "cluster": {"device": settings.device, "gpus_per_node": 1, "stall_minutes": 5, "retries": 0},
    }


def _training(settings: Settings, longest: int, samples: int) -> dict[str, Any]:
    """Return verl's keys of stages 1 and 2b, with micro-batches by tokens."""
    tokens = 16 * longest
    keys: dict[str, Any] = {
        "data.train_batch_size": 8,
        "actor_rollout_ref.rollout.n": samples,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.actor.optim.lr": 1.0e-5,
        "actor_rollout_ref.actor.use_dynamic_bsz": True,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": tokens,
    }
    if not settings.on_cpu:
        keys |= {
            "actor_rollout_ref.actor.strategy": "fsdp2",
            "actor_rollout_ref.rollout.gpu_memory_utilization": _SHARE,
        }
    return keys
