"""Compare stage 2b's update by our exact `reverse_kl` with verl's own `forward_kl_topk`, in verl's FSDP2 engines.

    python -m benchmarks.opd_stage [cases=small,vocabulary] [rounds=5] [threads=2]

Both sides get the same rollouts and start from the same student, and an update is verl's `update_actor`: forward,
loss, backward, clipping, Adam, in one micro-batch, float32, one rank over gloo. Ours asks the teacher's engine within
it. verl's loss wants the teacher's top k for each token (k and clamps as in verl's configuration; the distillation is
its only loss): a server makes them, for which stands here the least that any could do, a forward pass of the same
teacher in the same engine, its head on the rows that count alone, a chunk of them at a time, and no transport. It is
timed by itself; `verl, no teacher` leaves it out and is a lower bound. `chunked` is verl's own `use_chunked_topk`.

Rounds are interleaved in one process, in alternating order; seconds are medians, the speed is of response tokens, and
`ours / it` our speed over that line's. Processor seconds are of all threads: with threads=1 they are the ones to go by
on a busy machine, with more they include threads that wait for each other.

Memory is measured in a process for each update: the most by which the resident set exceeds, during forward and
backward, what it was right before, the parameters' gradients included. Loss memory is that less the same of an update
whose loss is the mean of the last hidden states, with no head and no teacher. Required: a speed of at least verl's
with the teacher's pass, and at a vocabulary of about 150,000 at most a third of its loss memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from verl_s2d.logs import last_lines
from verl_s2d.platforms.environment import cpu_environment

_MEMORY_ROUNDS = 2
_COLUMNS = ("update", "wall (s)", "tokens/s", "ours / it", "processor (s)", "ours / it", "peak (MiB)", "loss (MiB)")
_MIB = 1 << 20
# A resident set moves by this much for reasons of its own: no ratio of smaller figures is printed.
_NOISE = 64 * _MIB


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model; heads are of 32."""

    hidden: int
    layers: int
    heads: int
    tied: bool


@dataclass(frozen=True)
class Case:
    """Models and rollouts. Of `vocabulary` ids the first `words` are tokens; lengths are drawn between two bounds."""

    student: Shape
    teacher: Shape
    vocabulary: int
    words: int
    rollouts: int
    prompt: tuple[int, int]
    response: tuple[int, int]


CASES = {
    # recipes/quickstart: its models, its update of 256 rollouts.
    "small": Case(Shape(96, 2, 3, False), Shape(96, 3, 3, False), 102, 102, 256, (8, 8), (3, 4)),
    # Qwen3's vocabulary, and its heads: tied in the small model, not in the large one.
    "vocabulary": Case(Shape(256, 3, 4, True), Shape(512, 4, 8, False), 151_936, 151_669, 16, (8, 16), (64, 96)),
}
# Updates; two parts of one; and what a process can be asked for beside an update's memory.
OURS, VERL, CHUNKED = "ours", "verl", "verl, chunked"
BODY, TEACHER = "no loss", "teacher"
MODELS, TIME = "models", "time"


def main(names: list[str], rounds: int, threads: int) -> None:
    """Measure and print: a table and a JSON line per case."""
    print(f"python -m benchmarks.opd_stage cases={','.join(names)} rounds={rounds} threads={threads}", flush=True)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="s2d-opd-stage-") as scratch:
            timed, memory = _measure(name, Path(scratch), rounds, threads)
        row = _figures(timed, memory)
        print(_table(name, timed, row))
        print(json.dumps({"case": name, "threads": threads, "rounds": rounds} | row), flush=True)


def _measure(name: str, scratch: Path, rounds: int, threads: int) -> tuple[dict, dict[str, dict]]:
    """Run one process for times and one for the memory of each update; returns their findings."""

    def measure(what: str, repeats: int) -> dict:
        began, out, log = time.perf_counter(), scratch / "result.json", scratch / "log.txt"
        arguments = [str(scratch), name, what, str(repeats), str(threads), str(out)]
        # One count for every library that starts threads, and a platform that no probe has to find.
        environment = os.environ | cpu_environment() | {"OMP_NUM_THREADS": str(threads)}
        with log.open("w") as written:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.opd_stage_engines", *arguments],
                env=environment,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            sys.exit("\n".join([f"{name}, {what}: exit code {done.returncode}", *last_lines(log, 30)]))
        _say(f"{name}, {what}: {time.perf_counter() - began:.0f} s")
        return json.loads(out.read_text())

    measure(MODELS, 0)
    return measure(TIME, rounds), {what: measure(what, _MEMORY_ROUNDS) for what in (OURS, VERL, CHUNKED, BODY)}


def _figures(timed: dict, memory: dict[str, dict]) -> dict:
    """Name of an update -> seconds, speed, memory (bytes); ratios are of ours to verl's."""

    def seconds(clock: str, *parts: str) -> float:
        return statistics.median(map(sum, zip(*(timed[part][clock] for part in parts), strict=True)))

    figures = {}
    for label, parts, measured in (
        (OURS, (OURS,), OURS),
        (VERL, (VERL, TEACHER), VERL),
        (CHUNKED, (CHUNKED, TEACHER), CHUNKED),
        ("verl, no teacher", (VERL,), None),
    ):
        wall, processor = seconds("wall", *parts), seconds("processor", *parts)
        figures[label] = {"wall": wall, "processor": processor, "speed": timed["response_tokens"] / wall}
        if measured is not None:
            peak = memory[measured]["bytes"]
            figures[label] |= {"peak": peak, "loss_memory": peak - memory[BODY]["bytes"]} | {
                key: memory[measured][key] for key in ("loss", "grad_norm")
            }
    ours, verl = figures[OURS], figures[VERL]
    return figures | {
        BODY: {"peak": memory[BODY]["bytes"]},
        "speed_ratio": verl["wall"] / ours["wall"],
        "processor_speed_ratio": verl["processor"] / ours["processor"],
        "memory_ratio": ours["loss_memory"] / verl["loss_memory"] if verl["loss_memory"] > _NOISE else None,
        "load": os.getloadavg()[1],
    }


def _table(name: str, timed: dict, figures: dict) -> str:
    """Print the measurements, a line per update, and the required ratios."""
    case, ours = CASES[name], figures[OURS]
    lines = [
        f"\n{name}: vocabulary {case.vocabulary}, {case.rollouts} rollouts, {timed['response_tokens']} response tokens "
        f"of {timed['tokens']}, top {timed['top_k']}, load {figures['load']:.1f}",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
    ]
    for label in (OURS, VERL, CHUNKED, "verl, no teacher", BODY):
        row = figures[label]
        cells = [label if label not in (VERL, CHUNKED) else f"{label}, with a teacher's pass"]
        if "wall" in row:
            cells += [f"{row['wall']:.2f}", f"{row['speed']:.0f}", f"{row['wall'] / ours['wall']:.2f}"]
            cells += [f"{row['processor']:.2f}", f"{row['processor'] / ours['processor']:.2f}"]
        else:
            cells += [""] * 5
        cells += [f"{row[key] / _MIB:.0f}" if key in row else "" for key in ("peak", "loss_memory")]
        lines.append(f"| {' | '.join(cells)} |")
    memory = "too small to tell" if figures["memory_ratio"] is None else f"{figures['memory_ratio']:.2f}"
    lines.append(
        f"ours over verl with a teacher's pass: speed {figures['speed_ratio']:.2f} by wall, "
        f"{figures['processor_speed_ratio']:.2f} by processor; loss memory {memory}"
    )
    return "\n".join(lines)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(given.get("cases", "small,vocabulary").split(","), int(given.get("rounds", 5)), int(given.get("threads", 2)))
