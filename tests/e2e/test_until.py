"""Stages that a rule ends before their maximum of steps, in real verl and vLLM, killed in between and resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tiny import write_model, write_problems
from tests.support.tiny_verl import verl_command
from tests.support.workflow.faults import manifests, running, write_recipe
from verl_s2d.metrics.detectors import validation_score
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.recipe.until import Until
from verl_s2d.stages.ending.end_file import ended
from verl_s2d.stages.ending.end_rule import EndRule
from verl_s2d.validation import validated
from verl_s2d.workflow.store.checkpoints import completed_step

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS = 60
"""Maximum of the stages here; each ends long before."""
ROWS = """
def warmed(b):
    return b.warmup(b.model("student"), b.model("teacher"), b.rollouts(b.model("teacher"), "all"))
"""
"""2a alone, from the teacher as it is."""
SAVED = {
    "trainer.resume_mode": "auto",
    "actor_rollout_ref.actor.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
    "actor_rollout_ref.actor.optim.lr": 1e-3,
}
_LONG = 1500
"""Seconds that a busy machine may take."""


def recipe_with(directory: Path, row: str, **until: dict[str, Any]) -> Path:
    """The minimal recipe whose stages have these rules, and checkpoints at every second step."""
    directory.mkdir(exist_ok=True)
    (directory / "rows.py").write_text(ROWS)
    path = write_recipe(directory, rows=(f"rows.py:{row}",))
    recipe = yaml.safe_load(path.read_text())
    for name, rules in until.items():
        recipe["stages"][name] |= {"steps": STEPS, "save_every": 2, "until": rules}
    path.write_text(yaml.safe_dump(recipe))
    return path


def run_and_kill(recipe: Path, run_dir: Path, stage: str, after: int) -> Path:
    """Kill the run and all its processes with signal 9 when a stage has logged so many steps; the stage's directory."""
    with running(recipe, run_dir) as run:
        assert run.until(f"{stage} begins", lambda: dict(run.stages_begun()).get(stage), _LONG), run.output[-3000:]
        directory = run.wait_for(stage)
        assert run.until(f"step {after}", lambda: max(read_metrics(directory), default=0) >= after, _LONG)
        run.kill("machine", number=signal.SIGKILL)
        run.process.wait(30)
    assert (completed_step(directory / "checkpoints") or 0) < STEPS and not (directory / "manifest.json").exists()
    return directory


def finish(recipe: Path, run_dir: Path) -> str:
    with running(recipe, run_dir) as run:
        assert run.wait(_LONG) == 0, run.output[-3000:]
        return run.output


def logged(path: Path) -> dict[int, dict[str, Any]]:
    """Step -> metrics, of whole lines."""
    text = path.read_text() if path.exists() else ""
    lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return {line["step"]: line["data"] for line in lines}


def replayed(metrics: dict[int, dict[str, Any]], until: dict[str, Any]) -> str | None:
    """The reason that follows from what has been logged."""
    rule = EndRule(validated(Until, until))
    for step, data in sorted(metrics.items()):
        tokens = round(data.get("s2d/sampled_tokens", 0))
        rule.add_step(step, tokens=tokens, travel=data.get("s2d/travel"), divergence=data.get("s2d/reverse_kl"))
    return rule.reason


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("until", "killed_after", "words"),
    [
        ({"travel": 1e-3}, 1, "travel"),
        # Whatever the divergences are, their slope is within so many of its standard errors.
        ({"plateau": {"of": "divergence", "window": 4, "slope_se": 1e9}}, 2, "divergence falls by"),
    ],
    ids=["travel", "plateau"],
)
def test_2b_ends_by_its_rule_also_when_it_is_killed_in_between(
    verl, teacher, student, prompts, tmp_path, until, killed_after, words
):
    rules = {f"+s2d.until.{name}": rule for name, rule in until.items()}
    overrides = SAVED | {"trainer.save_freq": 1, "+s2d.teacher.path": str(teacher), "+s2d.travel": True} | rules
    chosen = {"student": student, "data": prompts, "out": tmp_path, "steps": STEPS}
    log = tmp_path / "metrics.jsonl"
    verl.kill(verl_command("opd", **chosen, overrides=overrides), tmp_path, lambda: len(logged(log)) >= killed_after)
    before = logged(log)
    checkpoints = tmp_path / "checkpoints"
    assert completed_step(checkpoints) < STEPS and ended(checkpoints) is None
    after = verl.run("opd", **chosen, overrides=overrides)
    step, reason = ended(checkpoints)
    assert killed_after < step < STEPS and step == max(after) and reason.startswith(words)
    assert min(after) <= killed_after + 1, "it went on from a checkpoint"
    assert replayed(before | after, until) == reason, "the metrics of both attempts, each step once, give the same end"
    assert list((checkpoints / f"global_step_{step}/actor/huggingface").glob("*.safetensors"))


@pytest.mark.timeout(3600)
def test_2a_ends_at_the_same_step_with_the_same_weights_whether_it_is_killed_or_not(tmp_path):
    """The cached rollouts are the same to the bit, and so is a resumed warmup."""
    until = {"plateau": {"of": "divergence", "window": 8, "slope_se": 1.0}}
    recipe = recipe_with(tmp_path / "recipe", "warmed", warmup=until)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(recipe, undisturbed)
    run_and_kill(recipe, killed, "warmup-all", 5)
    finish(recipe, killed)
    first, second = (manifests(directory)["warmup-all"] for directory in (undisturbed, killed))
    assert first["until"] == second["until"] and 8 <= first["until"]["step"] < STEPS
    assert (first["attempts"], second["attempts"]) == (1, 2)
    weights = [
        {o["name"]: o["sha256"] for o in manifest["outputs"] if o["name"].endswith(".safetensors")}
        for manifest in (first, second)
    ]
    assert weights[0] == weights[1] and weights[0]
    assert first["ledger"]["updates"] == second["ledger"]["updates"] == first["until"]["step"]


GRPO = {
    **SAVED,
    "trainer.v1.trainer_mode": "s2d_grpo",
    "trainer.save_freq": 100,
    "reward.custom_reward_function.path": "pkg://tests.support.tiny",
    "reward.custom_reward_function.name": "score_sum",
}


@pytest.mark.parametrize(
    ("rules", "most"),
    [
        ({"+s2d.until.travel": 1e-4}, 8),
        # Whatever the scores are, a slope is within so many of its standard errors, or it is not positive.
        ({"+s2d.until.plateau": {"of": "validation", "window": 3, "slope_se": 1e9}, "trainer.test_freq": 1}, 3),
    ],
    ids=["travel", "validation"],
)
def test_grpo_ends_by_a_rule_with_a_checkpoint_of_its_last_step(verl, tmp_path, rules, most):
    """A plateau of validation saves while the rollout's engine, awake for the validation, sleeps again."""
    student = write_model(tmp_path / "student", seed=1)
    data, out = write_problems(tmp_path / "problems.parquet", 32), tmp_path / "run"
    metrics = verl.run("grpo", student=student, data=data, out=out, steps=12, overrides=GRPO | rules)
    checkpoints = out / "checkpoints"
    step, reason = ended(checkpoints)
    assert step == max(metrics) <= most and reason.endswith(f"at step {step}")
    assert [p.name for p in checkpoints.glob("global_step_*")] == [f"global_step_{step}"]
    if "+s2d.until.travel" in rules:
        travels = [data["s2d/travel"] for _, data in sorted(metrics.items())]
        assert max(travels[:-1]) < 1e-4 <= travels[-1], "the first step is sampled by the start itself"
    else:
        assert all(validation_score(data) is not None for data in metrics.values()) and step == 3
    (out / "metrics.jsonl").unlink()
    assert verl.run("grpo", student=student, data=data, out=out, steps=12, overrides=GRPO | rules) == {}


def test_a_number_of_tokens_ends_grpo_with_a_checkpoint_of_its_last_step_and_a_resumed_run_adds_nothing(verl, tmp_path):
    student, out = write_model(tmp_path / "student", seed=1), tmp_path / "run"
    data = write_problems(tmp_path / "problems.parquet", 32)
    # 32 responses of at most 8 tokens a step; a step of an untrained student samples nearly all of them.
    overrides = GRPO | {"+s2d.until.sampled_tokens": 400}
    metrics = verl.run("grpo", student=student, data=data, out=out, steps=13, overrides=overrides)
    sampled = [round(32 * data["response_length/mean"]) for _, data in sorted(metrics.items())]
    last = len(sampled)
    assert sum(sampled[:-1]) < 400 <= sum(sampled), "the first step at or past the budget is the last one"
    checkpoints = out / "checkpoints"
    assert [p.name for p in checkpoints.glob("global_step_*")] == [f"global_step_{last}"]
    assert ended(checkpoints) == (last, f"{sum(sampled)} sampled tokens >= 400 at step {last}")
    kept = checkpoints / f"global_step_{last}"
    assert list((kept / "actor" / "huggingface").glob("*.safetensors")) and (kept / "data.pt").is_file()

    (out / "metrics.jsonl").unlink()
    assert verl.run("grpo", student=student, data=data, out=out, steps=13, overrides=overrides) == {}
    assert [p.name for p in checkpoints.glob("global_step_*")] == [f"global_step_{last}"]
