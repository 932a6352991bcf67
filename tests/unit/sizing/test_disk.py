"""Bytes on disk against closed forms, and the refusal of a run that will not fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.support.training_sizes import FSDP, MEGATRON, training
from tests.support.workflow.project import write_project
from verl_s2d.checks import disk_space as preflight
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.sizing.disk import StageDisk, run_disk, sampling_disk, training_disk
from verl_s2d.sizing.engine_memory import trained_parameters
from verl_s2d.sizing.shapes import PUBLISHED
from verl_s2d.stages import stages
from verl_s2d.stages.grpo.stage import Grpo
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.graph import Node

SMALL, QWEN = PUBLISHED["Qwen/Qwen3-1.7B"], PUBLISHED["Qwen/Qwen3-8B"]
LARGER, LLAMA = PUBLISHED["Qwen/Qwen3-14B"], PUBLISHED["meta-llama/Llama-3.3-70B-Instruct"]


def disk_of(shape, engine=FSDP, *, kind="grpo", steps=630, every=50, **keep) -> StageDisk | None:
    node = Node(stages()[kind], "stage", {"steps": steps}, operations={"save_every": every})
    settings = {"trainer": {"max_actor_ckpt_to_keep": None, "max_ckpt_to_keep": None} | keep}
    return training_disk(node, settings, training(engine), shape)


def test_a_checkpoint_of_fsdp_has_sixteen_bytes_a_parameter():
    assert disk_of(QWEN) == StageDisk(16 * QWEN.parameters, 13, 4 * QWEN.parameters)
    assert round(disk_of(QWEN).checkpoint / 1e9) == 131 and round(disk_of(SMALL).checkpoint / 1e9) == 28
    adapted = replace(FSDP, lora_rank=32)
    adapters = trained_parameters(SMALL, adapted)
    assert disk_of(SMALL, adapted).checkpoint == 4 * (2 * SMALL.parameters + 3 * adapters)


def test_a_checkpoint_of_megatron_has_fourteen_bytes_a_parameter():
    assert disk_of(LARGER, MEGATRON) == StageDisk(14 * LARGER.parameters, 13, 2 * LARGER.parameters)
    assert [round(disk_of(shape, MEGATRON).checkpoint / 1e9) for shape in (LARGER, LLAMA)] == [207, 988]


def test_checkpoints_kept_at_a_time():
    assert disk_of(QWEN, max_actor_ckpt_to_keep=2).kept == 2
    assert disk_of(QWEN, kind="warmup", max_actor_ckpt_to_keep=2, max_ckpt_to_keep=3).kept == 3
    assert disk_of(QWEN, steps=1, max_actor_ckpt_to_keep=2).kept == 1
    # A stage that stops where another row did has no number of steps yet.
    assert disk_of(QWEN, steps=None) is None and disk_of(QWEN, steps=None, max_actor_ckpt_to_keep=2).kept == 2


def test_a_run_holds_earlier_results_beside_the_checkpoints_of_one_stage():
    samples = sampling_disk(1000, prompt=100, response=900)
    assert samples == StageDisk(0, 0, pytest.approx(4 * 1000 / 0.9))
    most, left = run_disk([StageDisk(10, 2, 4), StageDisk(0, 0, 30), StageDisk(10, 1, 4)])
    assert (most, left) == (4 + 30 + 10, 4 + 30 + 4)
    assert run_disk([]) == (0, 0)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(Grpo, "demand", lambda *_: training(FSDP))
    recipe = load_recipe(write_project(tmp_path))
    return make_plan(recipe, run_dir=tmp_path / "deep" / "run", rows=["direct-grpo"])


def check(plan, shape=SMALL) -> str:
    composed = {"trainer": {"max_actor_ckpt_to_keep": 2}}
    settings = {node.label: composed for node in plan.order if node.kind == "grpo"}
    return preflight.check_disk(plan, settings, SimpleNamespace(shape=lambda node: shape))


def test_a_disk_that_is_too_small_is_refused_with_the_stage_that_needs_most(plan, monkeypatch):
    needed = 2 * 16 * SMALL.parameters
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    assert "take 55 GB, 55 GB are free" in check(plan)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(UserError, match="student-rl-all keeps the most: 2 checkpoints of 28 GB") as refused:
        check(plan)
    assert refused.value.key == "--run-dir" and "save_every" in refused.value.remedy
    assert "take 0 GB" in check(plan, shape=None)


def test_what_a_stopped_stage_has_written_counts_as_free(plan, monkeypatch):
    node = next(node for node in plan.order if node.kind == "grpo")
    step = plan.context.directory(node) / "checkpoints" / "global_step_2"
    step.mkdir(parents=True)
    (step / "model.pt").write_bytes(b"12345")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * 16 * SMALL.parameters - 5))
    assert check(plan)
