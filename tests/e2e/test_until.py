"""Stages that a rule ends before their maximum of steps, in real verl and vLLM, killed in between and resumed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.workflow.faults import manifests, running, write_recipe
from verl_s2d.recipe.until import Until
from verl_s2d.stages.ending.end_rule import EndRule
from verl_s2d.validation import validated
from verl_s2d.workflow.store.checkpoints import completed_step
from verl_s2d.workflow.store.verify import verify_run
from verl_s2d.workflow.watch.metric_logs import read_metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS = 60
"""Maximum of the stages here; each ends long before."""


def recipe_with(directory: Path, row: str, **until: dict[str, Any]) -> Path:
    """The minimal recipe whose stages have these rules, and checkpoints at every second step."""
    directory.mkdir(exist_ok=True)
    path = write_recipe(directory, rows=(row,))
    recipe = yaml.safe_load(path.read_text())
    recipe["stages"]["teacher_rl"] |= {"steps": 1}
    for name, rules in until.items():
        recipe["stages"][name] |= {"steps": STEPS, "save_every": 2, "until": rules}
    path.write_text(yaml.safe_dump(recipe))
    return path


def run_and_kill(recipe: Path, run_dir: Path, stage: str, after: int) -> Path:
    """Kill the run and all its processes with signal 9 when a stage has logged so many steps; the stage's directory."""
    with running(recipe, run_dir) as run:
        directory = run.wait_for(stage)
        assert run.until(f"step {after}", lambda: max(read_metrics(directory), default=0) >= after)
        run.kill("machine", number=signal.SIGKILL)
        run.process.wait(30)
    assert (completed_step(directory / "checkpoints") or 0) < STEPS and not (directory / "manifest.json").exists()
    return directory


def finish(recipe: Path, run_dir: Path) -> str:
    with running(recipe, run_dir) as run:
        assert run.wait(900) == 0, run.output[-3000:]
        return run.output


def replayed(directory: Path, until: dict[str, Any]) -> str | None:
    """The reason that follows from what the stage has logged over all its attempts, each step counted once."""
    rule = EndRule(validated(Until, until))
    for step, data in read_metrics(directory).items():
        tokens = round(data.get("s2d/sampled_tokens", 0))
        rule.add_step(step, tokens=tokens, travel=data.get("s2d/travel"), divergence=data.get("s2d/reverse_kl"))
    return rule.reason


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ({"travel": 0.02, "sampled_tokens": 100_000 // 50}, "travel"),
        ({"plateau": {"of": "divergence", "window": 6, "slope_se": 2.0}}, "divergence falls by"),
    ],
    ids=["travel", "plateau"],
)
def test_2b_ends_by_its_rule_also_when_it_is_killed_in_between(tmp_path, until, words):
    recipe, run_dir = recipe_with(tmp_path / "recipe", "opd-only", opd=until), tmp_path / "run"
    directory = run_and_kill(recipe, run_dir, "opd-all-cold", 3)
    output = finish(recipe, run_dir)
    manifest = manifests(run_dir)["opd-all-cold"]
    end = manifest["until"]
    assert end["reason"].startswith(words) and 3 < end["step"] < STEPS, end
    assert manifest["attempts"] == 2 and manifest["ledger"]["updates"] == end["step"]
    assert max(read_metrics(directory)) == end["step"]
    assert replayed(directory, until) == end["reason"], "the metrics of both attempts give the same end"
    assert f"ended before its maximum: {end['reason']}" in output
    assert (directory / "model" / "config.json").is_file() and not (directory / "checkpoints").exists()
    assert [finding for finding in verify_run(run_dir).findings if finding.bad] == []


def test_2a_ends_at_the_same_step_with_the_same_weights_whether_it_is_killed_or_not(tmp_path):
    """The cached rollouts are the same to the bit, and so is a resumed warmup."""
    until = {"plateau": {"of": "divergence", "window": 8, "slope_se": 1.0}}
    recipe = recipe_with(tmp_path / "recipe", "warmup-only", warmup=until)
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
