"""Compare updates of stage 2b with several frozen models to one with one, in verl's FSDP2 engine on a CPU.

    python -m benchmarks.signals [rounds=5] [sequences=16] [response=96] [vocabulary=32768]

Each signal is a worker of its own with equal students, given equal batches; rounds in alternating order, processor
seconds on one thread, medians. `pass` is a forward pass of the teacher and the bare product with its head on response
tokens, 256 at a time, which is the least that a further frozen model costs; verl's own log-prob call stands beside it.
Required: a composed update costs at most one with one teacher and a pass
for each further model, plus 5 %; an update with a teacher for each half of the rollouts at most one with one teacher,
plus 5 %; and TIP's ranges over the batch, and IW-OPD's weights, less than 2 % of an update.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine import BaseEngine

from benchmarks.on_cpu import restart_on_cpu
from benchmarks.opd_stage import CASES, Case
from benchmarks.opd_stage_engines import write_models
from tests.support.ranks.cpu_updates import Sizes, batch, configuration, worker
from verl_s2d import arguments
from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.signals.in_verl.kept_tokens import KeptTokens
from verl_s2d.signals.iw_opd import IwOpd
from verl_s2d.signals.sampled import Sampled
from verl_s2d.stages.opd.config import ROLE
from verl_s2d.teachers.frozen_teacher import FrozenTeacher
from verl_s2d.teachers.router import TEACHER_OF_ROW

ONE, ROUTED, TIP = "reverse_kl", "routed, 2 teachers", "tip, half the tokens"
PASS, LOG_PROBS = "pass", "verl's log-prob call"
CHUNK_TOKENS = 256


@dataclass(frozen=True)
class Options(Sizes):
    """Rounds, and the batch."""

    rounds: int = 5
    sequences: int = 16
    prompt: int = 16
    response: int = 96
    vocabulary: int = 32_768


def signals(models: Path) -> dict[str, dict[str, object]]:
    """Name -> overrides of the command; the models are of three different checkpoints."""

    def role(name: str, checkpoint: str) -> dict[str, object]:
        return {f"+s2d.models.{name}.path": str(models / checkpoint)}

    base, student = role("base", "base"), role("student", "initial")
    served = {"+s2d.models.a.serves": ["a"], "+s2d.models.b.serves": ["b"]}
    return {
        ONE: {"+s2d.signal.type": "reverse_kl"},
        "exopd_exact, 2 models": {"+s2d.signal.type": "exopd_exact"} | base,
        "delta_exact, 3 models": {"+s2d.signal.type": "delta_exact"} | base | student,
        ROUTED: {"+s2d.signal.type": "reverse_kl", "+s2d.teacher.path": None}
        | role("a", "teacher")
        | role("b", "base")
        | served,
        TIP: {"+s2d.signal.type": "reverse_kl", "+s2d.signal.keep_tokens": 0.5},
    }


def write_checkpoints(case: Case, directory: Path) -> None:
    """Write `student`, `teacher`, and two that are as large as the teacher and differ from it."""
    write_models(case, directory)
    for name in ("base", "initial"):
        write_models(replace(case, student=case.teacher), directory / "more")
        (directory / "more" / "student").rename(directory / name)
        case = replace(case, words=case.words - 1)


class Clock:
    """Sums processor seconds of wrapped calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **named: object) -> object:
            began = time.process_time()
            try:
                return function(*args, **named)
            finally:
                self.seconds += time.process_time() - began

        return called


def pass_of(engine: BaseEngine, given: TensorDict) -> None:
    """Ask a frozen model, and multiply the hidden states of the rows that predict a response with its head."""
    predicts = given["loss_mask"].values().roll(-1).nonzero().squeeze(-1)

    def multiply(teacher: LinearLogits) -> None:
        for part in predicts.split(CHUNK_TOKENS):
            teacher.hidden[part] @ teacher.head.T

    with engine.eval_mode():
        FrozenTeacher(engine, linear=True).consult(given, multiply)


def measure(options: Options, models: Path, words: int) -> None:
    workers = {
        name: worker("opd", configuration("opd", models, options, overrides))
        for name, overrides in signals(models).items()
    }
    ranges = Clock()
    KeptTokens._whole_batch = ranges.timed(KeptTokens._whole_batch)  # type: ignore[method-assign]
    calls: dict[str, Callable[[TensorDict], object]] = {name: made.update_actor for name, made in workers.items()}
    calls[PASS] = partial(pass_of, workers[ONE].ref.engine)
    calls[LOG_PROBS] = workers[ONE].compute_ref_log_prob
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    of_ranges: list[float] = []
    for number in range(options.rounds + 1):
        for name in list(calls)[:: -1 if number % 2 else 1]:
            given = batch("log-probs" if name == LOG_PROBS else "opd", options, words)
            if name == LOG_PROBS:
                tu.assign_non_tensor(given, **{ROLE: "teacher"})
            if name == ROUTED:
                given[TEACHER_OF_ROW] = torch.arange(options.sequences) % 2
            gc.collect()
            ranges.seconds, began = 0.0, time.process_time()
            output = calls[name](given)
            spent = time.process_time() - began
            if name in workers and not math.isfinite(float(tu.get(output, "metrics")["grad_norm"][-1])):
                raise RuntimeError(f"{name}: not an update")
            if number:  # the first round warms up
                seconds[name].append(spent)
                of_ranges += [ranges.seconds / spent] if name == TIP else []
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    report(medians)
    weigh_positions(options, medians[ONE])
    print(f"TIP's ranges: {statistics.median(of_ranges):.2%} of its update (required: under 2 %)")


def report(seconds: dict[str, float]) -> None:
    """Print the table; `allowed` is what an update may cost without the 5 %."""
    one, a_pass = seconds[ONE], seconds[PASS]
    allowed = {ONE: one, "exopd_exact, 2 models": one + a_pass, "delta_exact, 3 models": one + 2 * a_pass, ROUTED: one}
    print("| update | processor seconds | allowed | ratio |")
    print("|---|---|---|---|")
    for name, spent in seconds.items():
        cells = (f"{allowed[name]:.3f}", f"{spent / allowed[name]:.2f}") if name in allowed else ("", "")
        print(f"| {name} | {spent:.3f} | {' | '.join(cells)} |")


def weigh_positions(options: Options, update: float) -> None:
    """Print the share of IW-OPD's weights and their metrics in an update of so many processor seconds."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.sequences, options.response)
    student, teacher = (-torch.rand(shape, generator=generator) for _ in range(2))
    mask, spent = torch.ones(shape, dtype=torch.int64), {}
    for signal in (Sampled(), IwOpd()):
        began, repeats = time.process_time(), 50
        for _ in range(repeats):
            signal.advantages(student, {"teacher": teacher}, mask)
            signal.measured(student, {"teacher": teacher}, mask)
        spent[signal.type] = (time.process_time() - began) / repeats
    share = (spent["iw_opd"] - spent["sampled"]) / update
    print(f"IW-OPD's weights: {share:.3%} of an update (required: under 2 %)")


def main(options: Options) -> None:
    torch.set_num_threads(1)
    case = replace(CASES["vocabulary"], vocabulary=options.vocabulary, words=options.vocabulary - 7)
    with tempfile.TemporaryDirectory(prefix="s2d-signals-") as scratch:
        write_checkpoints(case, Path(scratch))
        measure(options, Path(scratch), case.words)


if __name__ == "__main__":
    restart_on_cpu("benchmarks.signals")
    print("python -m benchmarks.signals", *sys.argv[1:], flush=True)
    arguments.run(main, Options)
