"""Check part `stages`: every kind of stage with `verl-s2d run`, a kill -9 and a resume in 2b, the self-test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.gpu_check.stage_recipe import STEPS, write_recipe
from verl_s2d.metrics.metric_logs import last_step, read_metrics
from verl_s2d.workflow import attempts
from verl_s2d.workflow.hosts.process import kill_marked
from verl_s2d.workflow.store.manifest import MANIFEST, read_manifest
from verl_s2d.workflow.store.run_directory import read_record

_RUN_SECONDS = 900
_KINDS = ("grpo", "rollouts", "warmup", "opd", "evaluate")
_TIMES = ("gen", "old_log_prob", "ref", "update_actor", "update_weights", "save_checkpoint")


def run(settings: Settings, record: Recorder) -> None:
    """Run one row, kill it in the second step of stage 2b, resume it, then run the self-test."""
    recipe = write_recipe(settings)
    run_dir = settings.scratch / "stages" / "run"
    if not _killed_in_opd(record, recipe, run_dir):
        return
    before = _manifests(run_dir)
    if not _command(record, "run, resumed", ["run", str(recipe), "--run-dir", str(run_dir)]):
        return
    _resumed(record, run_dir, before)
    for kind in _KINDS:
        _figures(record, kind, _directory(run_dir, kind))
    _self_test(record, recipe, run_dir)


def _killed_in_opd(record: Recorder, recipe: Path, run_dir: Path) -> bool:
    """Start the run; kill it and all its processes once stage 2b has logged its first step."""
    log = recipe.with_name("killed.log")
    began = time.monotonic()
    process = _start(["run", str(recipe), "--run-dir", str(run_dir)], log)
    try:
        found = _until(process, lambda: _first_step(run_dir), began + _RUN_SECONDS)
    finally:
        process.kill()
        process.wait(30)
        if (known := read_record(run_dir)) is not None:
            kill_marked(known["id"])
    saved = _directory(run_dir, "opd")
    at_step = None if saved is None else max(read_metrics(saved), default=0)
    ok = found and at_step is not None and at_step < STEPS["opd"]
    said = f"killed after step {at_step}" if found else f"no first step of 2b:\n{_tail(log)}"
    record.expect("grpo, rollouts, warmup, 2b until a kill -9", ok, said, f"before step {STEPS['opd']} has ended")
    record.figure("until the kill", time.monotonic() - began, "s")
    if saved is not None:
        sizes = [file.stat().st_size for file in (saved / "checkpoints" / "global_step_1").rglob("*") if file.is_file()]
        record.expect("checkpoint of a killed stage", bool(sizes), f"{sum(sizes):,} bytes", "exists", value=sum(sizes))
    return ok


def _first_step(run_dir: Path) -> bool:
    directory = _directory(run_dir, "opd")
    return directory is not None and (last_step(directory / "metrics" / "attempt-1.jsonl") or 0) >= 1


def _until(process: subprocess.Popen, true: Callable[[], bool], deadline: float) -> bool:
    """Wait until the condition is true; False if the process or the time ends first."""
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        if true():
            return True
        if ended:
            return False
        time.sleep(0.02)
    return False


def _resumed(record: Recorder, run_dir: Path, before: Mapping[str, int]) -> None:
    """Check that the killed stage resumed from its checkpoint, with the ledger of a run without a kill."""
    after = _manifests(run_dir)
    again = [name for name, written in before.items() if after.get(name) != written]
    record.expect("finished stages", not again, f"built again: {again}" if again else "kept", "kept")
    directory = _directory(run_dir, "opd")
    manifest = read_manifest(directory)
    steps = STEPS["opd"]
    record.expect("attempts at 2b", manifest["attempts"] == 2, manifest["attempts"], "2")
    second = [json.loads(line)["step"] for line in (directory / "metrics" / "attempt-2.jsonl").open()]
    record.expect("first step of the resumed 2b", min(second) == 2, min(second), "2, the one that was killed")
    metrics = read_metrics(directory)
    record.expect("steps of 2b", list(metrics) == list(range(1, steps + 1)), list(metrics), f"1 to {steps}, each once")
    ledger = manifest["ledger"]
    scored, sampled = ledger["teacher_scored_tokens"], ledger["sampled_tokens"]
    record.expect("updates in the ledger of 2b", ledger["updates"] == steps, ledger["updates"], str(steps))
    # Every sampled token is scored once: a step that the kill repeated must count once on both sides.
    record.expect("tokens in the ledger of 2b", 0 < sampled == scored, f"{sampled} sampled, {scored} scored", "equal")


def _figures(record: Recorder, kind: str, directory: Path | None) -> None:
    """Record times, tokens per second and memory of a finished stage."""
    manifest = directory and read_manifest(directory)
    record.expect(f"{kind}: built", bool(manifest), directory.name if directory else "no directory", "with a manifest")
    if not manifest:
        return
    seconds = manifest["seconds"]
    record.figure(f"{kind}: all", seconds, "s")
    metrics = read_metrics(directory)
    if not metrics:
        if tokens := manifest["ledger"]["sampled_tokens"]:
            record.figure(f"{kind}: sampled tokens/s with start-up", tokens / seconds, "tokens/s")
        return
    losses = [value for step in metrics.values() for name, value in step.items() if name.endswith("grad_norm")]
    finite = bool(losses) and all(abs(value) < float("inf") for value in losses)
    record.expect(f"{kind}: gradient norms", finite, ", ".join(f"{value:.3g}" for value in losses), "finite")
    last = metrics[max(metrics)]
    steps = sum(step.get("timing_s/step", 0.0) for step in metrics.values())
    if manifest["attempts"] == 1:
        record.figure(f"{kind}: start-up", seconds - steps, "s")
    for name in _TIMES:
        if f"timing_s/{name}" in last:
            record.figure(f"{kind}: {name}", last[f"timing_s/{name}"], "s")
    for name, text, unit in (
        ("timing_s/step", "step", "s"),
        ("perf/throughput", "throughput", "tokens/s a GPU"),
        ("rollout_corr/kl", "KL of rollout and actor", "nats per token"),
        ("actor/perf/max_memory_allocated_gb", "peak allocated", "GiB"),
        ("actor/perf/max_memory_reserved_gb", "peak reserved", "GiB"),
        ("perf/max_memory_allocated_gb", "peak allocated", "GiB"),
        ("perf/max_memory_reserved_gb", "peak reserved", "GiB"),
    ):
        if isinstance(last.get(name), int | float):
            record.figure(f"{kind}: {text}", float(last[name]), unit)


def _self_test(record: Recorder, recipe: Path, run_dir: Path) -> None:
    """Record the findings of `check --self-test` that failed, and those of the self-test."""
    log = recipe.with_name("self-test.log")
    answer = _answer(["check", str(recipe), "--run-dir", str(run_dir), "--self-test", "--json"], log)
    if answer is None:
        record.expect("check --self-test", False, _tail(log), "answers")
        return
    for finding in answer:
        tested = finding["what"] in ("teacher = student", "rollout and training engine")
        if tested or not finding["ok"]:
            record.expect(f"check: {finding['what']}", finding["ok"], finding["detail"])
    record.expect("check --self-test", len(answer) > 2 and all(f["ok"] for f in answer), f"{len(answer)} findings")


def _answer(words: list[str], log: Path) -> Any:
    command = [sys.executable, "-m", "verl_s2d.cli", *words]
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stream, text=True, timeout=_RUN_SECONDS)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return None


def _command(record: Recorder, name: str, words: list[str]) -> bool:
    """Run a verl-s2d command to its end; returns whether it succeeded."""
    log = Path(words[1]).with_name(f"{name.replace(', ', '-')}.log")
    began = time.monotonic()
    process = _start(words, log)
    try:
        code = process.wait(_RUN_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        code = None
    text = "exit code 0" if code == 0 else f"exit code {code}\n{_tail(log)}"
    record.expect(name, code == 0, text, "exit code 0")
    record.figure(f"{name}: all", time.monotonic() - began, "s")
    return code == 0


def _start(words: list[str], log: Path) -> subprocess.Popen:
    with log.open("w") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "verl_s2d.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=dict(os.environ),
        )


def _directory(run_dir: Path, kind: str) -> Path | None:
    """Find the newest stage of this kind."""
    found = [path for path in (run_dir / "stages").glob(f"{kind}-*") if attempts.count(path)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _manifests(run_dir: Path) -> dict[str, int]:
    """Map each stage to its manifest's modification time in ns."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (run_dir / "stages").glob(f"*/{MANIFEST}")}


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]
