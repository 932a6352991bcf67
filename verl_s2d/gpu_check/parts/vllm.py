"""Check part `vllm`: the sampler's speed, vocabulary, stop ids and seeds, and its end by kill -9."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from verl_s2d.gpu_check import part_models
from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.workflow.hosts.process import kill_marked, marked_processes

_MARKER = "VERL_S2D_GPU_CHECK_SAMPLER"
_SECONDS, _GONE_SECONDS = 360, 10
_SLACK_MIB = 64
"""Tolerance for other processes that allocate GPU memory meanwhile."""


def run(settings: Settings, record: Recorder) -> None:
    """Sample in a subprocess, check the samples, then kill it and check for leftovers."""
    before = _gpu_mib(settings)
    value, out = secrets.token_hex(8), settings.scratch / "samples.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "verl_s2d.gpu_check.sampling_process"]
    command += [str(settings.write()), str(part_models.student(settings)), str(out)]
    process = subprocess.Popen(command, env=os.environ | {_MARKER: value}, start_new_session=True)
    try:
        answer = _answer(process, out)
        if answer is None:
            ended = process.poll()
            record.expect("sampler", False, "no answer" if ended is None else f"exit code {ended}", "samples")
            return
        _samples(record, answer)
        process.kill()
        process.wait(30)
        _gone(settings, record, value, before)
    finally:
        process.kill()
        kill_marked(value, _MARKER)


def _answer(process: subprocess.Popen, out: Path) -> dict[str, Any] | None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if out.exists():
            return json.loads(out.read_text())
        if process.poll() is not None:
            return None
        time.sleep(0.1)
    return None


def _samples(record: Recorder, answer: dict[str, Any]) -> None:
    completions, stop = answer["completions"], set(answer["stop_ids"])
    record.figure("ready after", answer["ready"], "s")
    record.figure("speed", answer["tokens"] / answer["seconds"], "tokens/s")
    record.expect("samples", len(completions) == answer["expected"], len(completions), str(answer["expected"]))
    largest = max(max(ids) for ids, _ in completions)
    record.at_most("largest id", largest, answer["vocabulary"] - 1)
    wrong = [
        ids
        for ids, reason in completions
        if (reason == "stop" and ids[-1] not in stop)
        or stop & set(ids[:-1])
        or (reason == "length" and len(ids) != answer["max_tokens"])
    ]
    stopped = sum(reason == "stop" for _, reason in completions)
    said = f"{len(wrong)} of {len(completions)} wrong, {stopped} stopped"
    record.expect("stop ids", not wrong, said, "an end where one was sampled, and none elsewhere")
    # In bf16 the rounding of logits depends on the rest of the batch, so these fractions have no limit.
    record.figure("equal samples, same seeds again", answer["equal_again"])
    record.figure("equal samples, same seeds with half of the prompts", answer["equal_with_fewer"])


def _gone(settings: Settings, record: Recorder, value: str, before: int | None) -> None:
    """Check that a killed sampler leaves no process and frees the GPU's memory."""
    deadline = time.monotonic() + _GONE_SECONDS
    left, used = marked_processes(value, _MARKER), _gpu_mib(settings)
    while time.monotonic() < deadline and (left or not _returned(before, used)):
        time.sleep(0.5)
        left, used = marked_processes(value, _MARKER), _gpu_mib(settings)
    limit = f"none within {_GONE_SECONDS} s"
    record.expect("processes after a kill -9", not left, f"{len(left)} left" if left else "none", limit)
    if settings.on_cpu:
        record.skip("GPU memory after a kill -9", "needs a GPU")
    elif before is None:
        record.skip("GPU memory after a kill -9", "nvidia-smi did not answer")
    else:
        returned = _returned(before, used)
        record.expect("GPU memory after a kill -9", returned, f"{used} MiB used", f"<= {before} + {_SLACK_MIB} MiB")


def _returned(before: int | None, used: int | None) -> bool:
    return before is None or (used is not None and used <= before + _SLACK_MIB)


def _gpu_mib(settings: Settings) -> int | None:
    """Query the MiB in use on the first GPU by all processes; None if nvidia-smi does not answer."""
    if settings.on_cpu:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return int(done.stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
