"""kill -9 at a random moment of every stage, and SIGTERM in one, in one run directory: the same command goes on."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.workflow.damage import truncate
from tests.support.workflow.faults import (
    PLANTED,
    PLANTED_IN_RECIPE,
    Commands,
    Run,
    determined,
    finish,
    manifests,
    nothing_half_written,
    write_recipe,
    written,
)
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.stages import stages
from verl_s2d.workflow.store import checkpoints

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRAINING = ("teacher-rl-1h", "warmup-1h", "opd-1h", "student-rl-2h")
EVERYWHERE = ("driver", "command", "machine")
SAMPLING = ("vllm server", "agent loop worker", "transfer queue")
DECK = ("worker", "vllm server", "ray gcs", "transfer queue", "driver", "agent loop worker", "raylet", "reward worker")
DECK += ("machine", "command")
ABSENT = {"warmup-1h": (*SAMPLING, "reward worker"), "opd-1h": ("reward worker",)}
STAGES = ("teacher-rl-1h", "rollouts-1h", "warmup-1h", "opd-1h", "student-rl-2h", "evaluate-half-split")


LOGGED_WHERE_ASKED = {
    *("actor/kl_loss", "s2d/reverse_kl", "s2d/travel", "s2d/overlap_ratio", "s2d/parse_rate"),
    *("s2d/validation_unscored_share", "truncated"),
}
"""Metrics that need a reference policy, a teacher in stage 3, health in 2b or validation; the last is computed."""


def choose_victims(seed: int, rng: random.Random) -> dict[str, str]:
    """A victim for every stage; each of the deck comes twice in five seeds, in any of the stages that have it."""
    four = [DECK[(4 * seed + i) % len(DECK)] for i in range(4)]
    while any(victim in ABSENT.get(stage, ()) for stage, victim in zip(TRAINING, four, strict=True)):
        rng.shuffle(four)
    chosen = dict(zip(TRAINING, four, strict=True))
    return {stage: chosen.get(stage) or rng.choice(EVERYWHERE) for stage in STAGES}


@pytest.mark.timeout(3600)
def test_the_same_command_finishes_after_every_kill(seed, undisturbed, tmp_path, fault):
    rng = random.Random(seed)
    recipe, run_dir = write_recipe(tmp_path, cluster={"grace_seconds": 120}), tmp_path / "run"
    victims, preempted, twice = choose_victims(seed, rng), rng.choice(TRAINING), rng.choice(STAGES)
    with Commands(recipe, run_dir) as commands:
        for stage, following in zip(STAGES, (*STAGES[1:], None), strict=True):
            if stage == preempted:
                preempt(commands.running(), stage)
                fault("SIGTERM with 120 s to save in", stage)
            before = written(run_dir)
            run, directory, where = strike(commands, stage, victims[stage], rng, recipe if stage == twice else None)
            if stage == twice:
                fault("a second `run` on the directory", stage)
            fault(f"kill -9 of the {victims[stage]}", stage)
            check_what_follows(run, victims[stage], following)
            outcome = "went on" if run.running else f"exit code {run.process.returncode}"
            print(f"{stage}: {victims[stage]} in {where}, {outcome}", flush=True)
            kept = written(run_dir)
            assert {name: kept.get(name) for name in before} == before, "a finished stage was built again"
            nothing_half_written(run_dir)
            if not run.running and (damaged := damage_a_checkpoint(rng, directory)):
                fault(damaged, stage)
    before = written(run_dir)
    printed = finish(recipe, run_dir)
    after = written(run_dir)
    assert {name: after[name] for name in before} == before
    nothing_half_written(run_dir)
    check_ledger(run_dir)
    check_alarms_have_their_metrics(run_dir)
    check_secrets(run_dir, printed)
    assert determined(run_dir) == determined(undisturbed)
    check_calls(run_dir, undisturbed)


def strike(
    commands: Commands, stage: str, victim: str, rng: random.Random, second: Path | None
) -> tuple[Run, Path, str]:
    """Kill at some moment of a stage; the run, the stage's directory, and where it was.

    Args:
        second: the recipe for another `run` that is to be refused before.
    """
    # Twice, for the kill before may have struck when its stage was over: then the run ends in this one by itself.
    for _ in range(2):
        run = commands.running()
        directory = run.wait_for(stage)
        if second is not None and run.running:
            refuse_a_second(run, second)
        wait_for_a_moment(rng, run, directory)
        where = run.at_work()
        if run.kill(victim):
            return run, directory, where
        assert run.wait() == 1
    raise AssertionError(f"{stage} ended before its {victim} was found:\n{run.output[-3000:]}")


def wait_for_a_moment(rng: random.Random, run: Run, stage: Path) -> None:
    """Some time in the stage's start, or after some step (which ends with a checkpoint); less if the run ends."""
    steps = {"grpo": 4, "opd": 4, "warmup": 30}.get(stage.name.partition("-")[0], 1)
    after = rng.randrange(steps)
    if after:
        run.until(f"step {after}", lambda: max(read_metrics(stage), default=0) >= after)
    start = 8.0 if steps > 1 else 1.5
    seconds = rng.uniform(0, min(2.0, 8 / steps) if after else start)
    try:
        run.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def check_what_follows(run: Run, victim: str, following: str | None) -> None:
    """It ends, says what happened and leaves nothing running (what was killed itself cannot; the next one clears up);
    or the stage could do without what was killed, and the run has gone on to the following one."""
    went_on = run.until("the end", lambda: following in dict(run.stages_begun()), limit=400)
    if victim in ("command", "machine"):
        assert run.wait() == -9
    elif not went_on:
        code = run.wait()
        assert code == 1 or (code == 0 and following is None), run.output[-3000:]
        assert run.left_behind() == []
        if code == 1:
            assert re.search(
                r"failed with exit code|was killed by signal|stalled|an actor that has died|did not start", run.output
            )


def preempt(run: Run, stage: str) -> None:
    """SIGTERM once the stage has done a step: it saves the step that it is in, and ends as signals end things."""
    directory = run.wait_for(stage)
    run.until("a step", lambda: read_metrics(directory))
    run.kill("command", number=15)
    assert run.wait() == 143, run.output[-3000:]
    assert "it has not" not in run.output and "run the same command again" in run.output
    assert run.left_behind() == []
    done = max(read_metrics(directory))
    assert checkpoints.completed_step(directory / "checkpoints") == done, "a step that was done is lost"


def refuse_a_second(run: Run, recipe: Path) -> None:
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run.run_dir)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert second.returncode == 2 and f"process {run.process.pid}" in second.stderr, second.stderr


def damage_a_checkpoint(rng: random.Random, stage: Path) -> str | None:
    """Harm a file of the newest checkpoint, if there is an older one to go on from; what was done."""
    saved = stage / "checkpoints"
    newest = checkpoints.completed_step(saved)
    if newest is None or len([p for p in saved.glob("global_step_*") if any(p.glob("data*.pt"))]) < 2:
        return None
    truncate(rng.choice(sorted((saved / f"global_step_{newest}").rglob("*.pt"))))
    return "truncated file of the newest checkpoint"


def check_ledger(run_dir: Path) -> None:
    """2a and 2b read no answer; no label is in two slices; every label of a slice counts once however often read."""
    ledgers: dict[str, list[dict]] = {}
    for manifest in manifests(run_dir).values():
        ledgers.setdefault(manifest["kind"], []).append(manifest["ledger"])
    for kind in ("rollouts", "warmup", "opd"):
        for ledger in ledgers[kind]:
            assert ledger["labels_read"] == [] and ledger["verifier_calls"] == 0
    first, second = (set(ledger["labels_read"]) for ledger in ledgers["grpo"])
    assert first and second and not first & second
    assert sum(len(ledger["labels_read"]) for ledger in ledgers["grpo"]) == len(first | second)


def check_calls(run_dir: Path, undisturbed: Path) -> None:
    """Calls of the verifier count when they happen: those of a step that was done again come twice, none is lost."""
    had = {name: manifest["ledger"]["verifier_calls"] for name, manifest in manifests(undisturbed).items()}
    for name, manifest in manifests(run_dir).items():
        assert manifest["ledger"]["verifier_calls"] >= had[name]


def check_alarms_have_their_metrics(run_dir: Path) -> None:
    """A metric that verl calls otherwise would silence an alarm."""
    for kind in ("grpo", "warmup", "opd"):
        for directory in run_dir.glob(f"stages/{kind}-*"):
            watched = {metric.key for metric in stages()[kind].metrics if metric.alarm}
            missing = watched - LOGGED_WHERE_ASKED - max(read_metrics(directory).items())[1].keys()
            assert not missing, f"{kind}: {missing}"


def check_secrets(run_dir: Path, printed: str) -> None:
    """verl and hydra write their whole configuration; no secret is in anything else, or in what is printed."""
    words = (*PLANTED.values(), PLANTED_IN_RECIPE)
    assert "tracking_api_key" in "".join(p.read_text(errors="replace") for p in run_dir.glob("stages/grpo-*/log.txt"))
    assert not [word for word in words if word in printed]
    for path in run_dir.rglob("*"):
        written_by_processes = path.suffix in (".txt", ".log") or {"hydra", "worker-logs"} & set(path.parts)
        if path.is_file() and not written_by_processes:
            assert not [word for word in words if word.encode() in path.read_bytes()], path
