"""GRPO in real verl that stops at a number of sampled tokens, and again when it is resumed."""

from __future__ import annotations

import json

import pytest

from tests.support.tiny import write_model, write_problems

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_budget_ends_grpo_with_a_checkpoint_of_its_last_step_and_a_resumed_run_adds_nothing(verl, tmp_path):
    student = write_model(tmp_path / "student", seed=1)
    data = write_problems(tmp_path / "problems.parquet", 32)
    out = tmp_path / "run"
    # 32 responses of at most 8 tokens a step; a step of an untrained student samples nearly all of them.
    overrides = {
        "trainer.v1.trainer_mode": "s2d_grpo",
        "+s2d.until.sampled_tokens": 400,
        "trainer.save_freq": 100,
        "trainer.resume_mode": "auto",
        "actor_rollout_ref.actor.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        "reward.custom_reward_function.path": "pkg://tests.support.tiny",
        "reward.custom_reward_function.name": "score_sum",
    }
    metrics = verl.run("grpo", student=student, data=data, out=out, steps=13, overrides=overrides)
    sampled = [round(32 * data["response_length/mean"]) for _, data in sorted(metrics.items())]
    last = len(sampled)
    assert sum(sampled[:-1]) < 400 <= sum(sampled), "the first step at or past the budget is the last one"
    checkpoints = out / "checkpoints"
    assert [p.name for p in checkpoints.glob("global_step_*")] == [f"global_step_{last}"]
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == str(last)
    kept = checkpoints / f"global_step_{last}"
    assert json.loads((kept / "end_rule.json").read_text())["sampled_tokens"] == sum(sampled)
    assert list((kept / "actor" / "huggingface").glob("*.safetensors")) and (kept / "data.pt").is_file()

    (out / "metrics.jsonl").unlink()
    assert verl.run("grpo", student=student, data=data, out=out, steps=13, overrides=overrides) == {}
    assert [p.name for p in checkpoints.glob("global_step_*")] == [f"global_step_{last}"]
