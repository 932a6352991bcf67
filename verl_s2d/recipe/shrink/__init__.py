"""Shrink a recipe to tiny size on this machine (`--shrink`): a mapping to a mapping, before validation.

Sizes, models, data and settings that a CPU lacks change; rows, strategies, objectives and verl keys stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_s2d.recipe.planner_settings import Planner
from verl_s2d.recipe.schema import SHORT_FORMS
from verl_s2d.recipe.shrink.small_data import small_data
from verl_s2d.recipe.shrink.small_models import tiny_models
from verl_s2d.recipe.shrink.small_sets import TRAIN_PROBLEMS
from verl_s2d.recipe.shrink.small_verl import small_verl

PROMPT_TOKENS, RESPONSE_TOKENS, OPD_TOKENS = 512, 16, 8
STEPS, SAMPLES, ROLLOUTS = 2, 4, 2
PREFIX = {"start": 2, "grow": 2}
PROPOSALS = {
    **{"rounds": 1, "proposals": 48, "proposal_tokens": 12, "percentiles": [0, 100]},
    **{"pattern": r"(?s)(?P<question>\S.*)(?P<hint>\S)", "template": "none"},
    **{"question_characters": [1, 2000], "hint_characters": [1, 400]},
}
"""A tiny model writes no form that it is asked for: any text is a question, and its last letter a hint."""
_ENGINE_SIZES = (
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "cpu_offload_gb", "num_gpu_blocks_override"),
    *("max_num_seqs", "max_num_batched_tokens", "cudagraph_capture_sizes", "max_cudagraph_capture_size"),
)


def shrunk(recipe: Mapping[str, Any], directory: Path, device: str) -> dict[str, Any]:
    """Shrink a recipe that has been validated.

    Args:
        directory: of the recipe's file, from which its relative paths count.
        device: `cpu` or `cuda`, of this machine.

    Raises:
        UserError: a model of an architecture without a tiny one.
    """
    short = {role: recipe[role] for role in SHORT_FORMS if role in recipe}
    small = {key: value for key, value in recipe.items() if key not in (*short, "published")}
    small["models"] = tiny_models(short | recipe.get("models", {}), directory)
    small["name"] = f"{recipe['name']}-shrunk"
    small["seeds"] = list(recipe.get("seeds", [0]))[:1]
    small["data"] = small_data(recipe["data"], directory)
    for tokens, most in (("prompt_tokens", PROMPT_TOKENS), ("response_tokens", RESPONSE_TOKENS)):
        small["data"][tokens] = min(most, recipe["data"][tokens])
    small["evaluation"] = _evaluation(recipe.get("evaluation", {}))
    if recipe.get("planner") is not None:
        small["planner"] = _planner(recipe["planner"])
    small["stages"] = {
        name: _stage(name, stage, device) if stage else stage for name, stage in recipe.get("stages", {}).items()
    }
    cluster = {k: v for k, v in recipe.get("cluster", {}).items() if k not in ("gpu_memory_gb", "grace_seconds")}
    small["cluster"] = cluster | {"nodes": 1, "gpus_per_node": 1, "device": device, "retries": 0}
    return small


def _evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    samples = min(SAMPLES, evaluation.get("samples", SAMPLES))
    small = _sampler(evaluation) | {"samples": samples}
    if evaluation.get("max_tokens"):
        small["max_tokens"] = min(RESPONSE_TOKENS, evaluation["max_tokens"])
    if evaluation.get("pass_at"):
        small["pass_at"] = [k for k in evaluation["pass_at"] if k <= samples]
    return small


def _planner(planner: Mapping[str, Any]) -> dict[str, Any]:
    defaults = Planner()
    return _sampler(planner) | {
        "problems": min(TRAIN_PROBLEMS, planner.get("problems", defaults.problems)),
        "samples": min(SAMPLES, planner.get("samples", defaults.samples)),
    }


def _stage(name: str, stage: Mapping[str, Any], device: str) -> dict[str, Any]:
    small = _sampler(stage)
    if "steps" in stage:
        small |= {"steps": min(STEPS, stage["steps"]), "save_every": 1}
    # So few steps have no window for a plateau, and sample few tokens.
    if (until := small.pop("until", None)) and "travel" in until:
        small["until"] = {"travel": until["travel"]}
    if stage.get("validate_every"):
        small["validate_every"] = 1
    for key, most in (("per_prompt", ROLLOUTS), ("response_tokens", OPD_TOKENS)):
        if stage.get(key):
            small[key] = min(most, stage[key])
    if "samples" in stage:
        small["samples"] = min(SAMPLES, stage["samples"])
    if name == "g_zero":
        small |= PROPOSALS
    if stage.get("prefix"):
        small["prefix"] = PREFIX
    if "verl" in stage:
        small["verl"] = small_verl(stage["verl"], device)
    return small


def _sampler(section: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a section; one engine on one GPU, with vLLM's own share of the memory."""
    small = {key: value for key, value in section.items() if key != "tensor_parallel_size"}
    if "engine" in section:
        small["engine"] = {key: value for key, value in section["engine"].items() if key not in _ENGINE_SIZES}
    return small
