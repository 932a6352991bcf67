"""Batches are divided among data-parallel ranks, which are fewer than the GPUs where several hold one model."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import FIXED_MICRO_BATCHES, settings, write_project
from verl_s2d.checks.inputs.batch_sizes import check_batches, check_engines
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.shared.training_stage import TrainingStage

GOOD = settings()["stages"]["opd"]["verl"] | FIXED_MICRO_BATCHES
MEGATRON = {"model_engine": "megatron", "actor_rollout_ref.actor.megatron.tensor_model_parallel_size": 2}
ULYSSES = {"actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": 2}
OLDER_ULYSSES = {"actor_rollout_ref.actor.ulysses_sequence_parallel_size": 2}
SMALL = {"actor_rollout_ref.actor.ppo_mini_batch_size": 1, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 1}
TWO = {"data.train_batch_size": 4, "data.micro_batch_size_per_gpu": 2}
ONE = {"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 1}
SCORES = {f"actor_rollout_ref.{s}.log_prob_micro_batch_size_per_gpu": 2 for s in ("rollout", "ref")}


def check(plan, nodes):
    check_batches(plan, nodes)
    check_engines(plan, nodes)


def test_sizes_in_sequences_switch_batches_by_tokens_off(tmp_path):
    """The log-probabilities take the updates' size, and nothing is built again."""
    bare = {k: v for k, v in settings()["stages"]["opd"]["verl"].items() if k not in FIXED_MICRO_BATCHES}
    plans = [
        make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=["half-split"])
        for changes in (
            {"stages__opd__verl": bare},
            {
                "stages__opd__verl": bare | ONE,
                "stages__warmup__verl": {"data.train_batch_size": 4, "data.micro_batch_size_per_gpu": 2},
            },
        )
    ]
    opd, warmup = (next(n for n in plans[1].order if n.kind == kind) for kind in ("opd", "warmup"))
    composed = opd.stage.composed_settings(opd, plans[1].context)["actor_rollout_ref"]
    assert not composed["actor"]["use_dynamic_bsz"] and not composed["ref"]["log_prob_use_dynamic_bsz"]
    assert composed["rollout"]["log_prob_micro_batch_size_per_gpu"] == 1
    assert warmup.stage.composed_settings(warmup, plans[1].context)["data"]["use_dynamic_bsz"] is False
    check(plans[1], plans[1].order)
    assert next(n for n in plans[0].order if n.kind == "opd").settings == opd.settings


@pytest.mark.parametrize(
    "verl",
    [
        # Two ranks of two GPUs share the two sequences of a mini-batch.
        {**MEGATRON, **SMALL, **SCORES},
        {**ULYSSES, **SMALL, **SCORES},
        {**OLDER_ULYSSES, **SMALL, **SCORES},
        # One rank of four has all eight.
        {
            **MEGATRON,
            **SCORES,
            "actor_rollout_ref.actor.megatron.context_parallel_size": 2,
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 8,
        },
    ],
)
def test_batches_divide_among_data_parallel_ranks_not_gpus(tmp_path, verl):
    recipe = write_project(
        tmp_path, stages__opd__verl={**GOOD, **verl}, cluster__gpus_per_node=4, cluster__device="cuda"
    )
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])
    check(plan, [node for node in plan.order if node.kind == "opd"])


@pytest.mark.parametrize(
    ("verl", "key", "words"),
    [
        (
            {**MEGATRON, **SMALL, "actor_rollout_ref.rollout.n": 1},
            "ppo_mini_batch_size",
            ["2 data-parallel ranks (4 GPUs"],
        ),
        ({**ULYSSES, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 3}, "ppo_micro_batch", ["divisor of 4"]),
        ({**MEGATRON, "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size": 3}, "pipeline", ["divide 2"]),
        (
            {"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 3},
            "rollout.log_prob_micro",
            ["divisor of 2"],
        ),
        ({**MEGATRON, "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 3}, "ref.log_prob", ["divisor of 4"]),
        # verl's own rule for FSDP, in which sequence parallelism does not count.
        (
            {**ULYSSES, "data.train_batch_size": 3, "actor_rollout_ref.actor.ppo_mini_batch_size": 3, **ONE},
            "data.train_batch_size",
            ["all 4 GPUs"],
        ),
        # Accepted at the start, asserted by the worker.
        (
            {
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": None,
                "actor_rollout_ref.rollout.log_prob_micro_batch_size": 8,
            },
            "rollout.log_prob_micro_batch_size_per_gpu",
            [],
        ),
        (
            {"actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": True},
            "rollout.log_prob_use_dynamic_bsz",
            ["Leave it"],
        ),
    ],
)
def test_batches_that_workers_with_parallel_models_would_reject(tmp_path, verl, key, words):
    chosen = {**GOOD, **SCORES, **verl}
    recipe = write_project(tmp_path, stages__opd__verl=chosen, cluster__gpus_per_node=4, cluster__device="cuda")
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])
    with pytest.raises(UserError) as refused:
        check(plan, [node for node in plan.order if node.kind == "opd"])
    assert key in refused.value.key and all(word in str(refused.value) for word in words), refused.value


def test_megatron_on_a_cpu_is_refused_with_the_ways_out(tmp_path):
    recipe = write_project(tmp_path, stages__opd__verl={**GOOD, **MEGATRON, **SCORES})
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])
    with pytest.raises(UserError) as refused:
        check(plan, plan.order)
    assert refused.value.key == "model_engine" and "--shrink" in refused.value.remedy


def test_what_hydra_rejects_names_the_stage(tmp_path):
    recipe = write_project(tmp_path, stages__warmup__verl={"data.train_batch_size": 4, "engine.no_such_key": 1})
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])
    with pytest.raises(UserError, match=r"warmup-1h: .*no_such_key"):
        check(plan, plan.order)


def test_stages_of_other_seeds_are_not_composed_again(tmp_path, monkeypatch):
    composed, compose = [], TrainingStage.composed_settings
    monkeypatch.setattr(
        TrainingStage, "composed_settings", lambda self, *of: composed.append(self.kind) or compose(self, *of)
    )
    recipe = load_recipe(write_project(tmp_path))
    plan = make_plan(recipe, run_dir=tmp_path / "run", rows=["half-split"], seeds=[0, 1, 2])
    check(plan, plan.order)
    assert sorted(composed) == ["grpo", "opd", "warmup"], "stages 1 and 3 of this recipe have equal settings"
