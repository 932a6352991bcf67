"""Compare full-vocabulary distillation losses: time, peak memory and gradient error, forward and backward.

    python -m benchmarks.divergence [cases=A,B] [methods=floor,ours] [variants=plain] [frozen=1] [rounds=5] [threads=1]

Everybody computes the loss sum_i w_i KL_i from the same hidden states and heads, and its gradients to the student's
hidden states and head. Times are over the floor, the bare matrix products that any exact method needs: both heads
forward, and the student head's two gradients. Two clocks: processor time of this process, which other work on the
machine disturbs little, and wall time. Rounds are interleaved; a ratio is the median over rounds of that round's
ratio. Memory is the allocator's peak above the inputs, without the head's gradient, in units of N x V x 4 bytes;
gradient error is the norm of the difference from float64 over the norm, hidden states and head together.

Three floors. `floor`: torch.mm into memory that was written before; what all ratios are over. `floor-fresh`: the same
into fresh memory, page faults included. `floor-onednn`: each product by the faster of MKL and oneDNN, in float32.

methods: `own` for all but the peers, `all`, or names. Peers: liger, liger-compiled (liger-kernel>=0.8), trl
(trl>=1.16), verl-top-32, verl-top-32-chunked; the last two are given the teacher's top 32, need no teacher product for
that, and are not exact. variants: `plain` has both KLs, `all` also 40 % of the tokens kept, a frozen head, and bf16.
frozen=2 and 3: a teacher composed of so many models, as ExOPD's and Delta-OPD's, under the reverse KL; the floor has a
product for each.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import replace

import torch

from benchmarks.divergence_methods import FLOORS, Case, Contestant, Problem, contestants, float64_gradients
from benchmarks.divergence_peers import peers

_SIZES = {
    "small": (64, 32, 48, 1000),
    "A": (1024, 256, 512, 32_768),
    "A4": (4096, 256, 512, 32_768),
    "B": (512, 512, 1024, 151_936),
}


def cases(names: list[str], variants: str = "plain", frozen: int = 1) -> list[Case]:
    """Each size under both KLs; with variants=all masked to 40 % and with a frozen head too, and A in bf16.

    A4, which is there to show that memory does not grow with the tokens, under one KL.
    """
    if frozen > 1:
        return [Case(name, *_SIZES[name], objective="reverse_kl", frozen=frozen) for name in names]
    found = []
    for name in names:
        base = Case(name, *_SIZES[name])
        found.append(base)
        if name == "A4":
            continue
        found.append(replace(base, objective="reverse_kl"))
        if variants == "all":
            found += [replace(base, kept=0.4), replace(base, frozen_head=True)]
            found += [replace(base, dtype=torch.bfloat16)] * (name == "A")
    return found


def chosen(methods: str) -> dict[str, Contestant]:
    """Contestants by name; the floor is always among them.

    Raises:
        SystemExit: no method has this name.
    """
    own, others = contestants(), peers()
    known = own | others
    names = {"own": list(own), "all": list(known)}.get(methods) or methods.split(",")
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"methods {unknown} are none of {list(known)}")
    return {name: known[name] for name in dict.fromkeys(["floor", *names])}


def peak_bytes(problem: Problem, contestant: Contestant) -> int:
    """The allocator's high water above what was there, the head's gradient taken off."""
    if problem.case.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestant(problem)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
            contestant(problem)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        now = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
    head = 0 if problem.case.frozen_head else problem.student.head.numel() * problem.student.head.element_size()
    return max(0, peak - head)


def seconds(problem: Problem, contestant: Contestant) -> tuple[float, float]:
    """Processor and wall time of one call."""
    processor, wall = time.process_time(), time.perf_counter()
    contestant(problem)
    if problem.case.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - processor, time.perf_counter() - wall


def _distance(gradients: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    return math.sqrt(sum((a.double() - b).square().sum().item() for a, b in zip(gradients, exact, strict=True)))


def measure(case: Case, able: dict[str, Contestant], rounds: int, *, check: bool = True) -> list[dict]:
    """One row per contestant that can do this case; without `check` no gradient is made in float64."""
    problem, able = Problem.of(case), dict(able)
    exact = float64_gradients(problem) if check else []
    norm = math.sqrt(sum(g.square().sum().item() for g in exact))
    rows = {}
    for name, contestant in list(able.items()):
        try:
            gradients = contestant(problem)  # the first call, which may compile, is not timed
        except (NotImplementedError, torch.OutOfMemoryError) as error:
            print(f"  {name}: left out ({str(error).splitlines()[0]})", file=sys.stderr)
            del able[name]
            continue
        row = rows[name] = {"error": None, "memory": None}
        if name in FLOORS:
            continue
        if check and "top-" not in name:
            row["error"] = _distance(gradients, exact) / norm
        del gradients
        row["memory"] = peak_bytes(problem, contestant) / (case.tokens * case.vocabulary * 4)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in able}
    for _ in range(rounds):
        for name, contestant in able.items():
            times[name].append(seconds(problem, contestant))
    about = {
        "case": case.name,
        "objective": case.objective,
        "kept": case.kept,
        "frozen_head": case.frozen_head,
        "dtype": str(case.dtype).removeprefix("torch."),
    }
    for name, row in rows.items():
        for clock, place in (("processor", 0), ("wall", 1)):
            pairs = zip(times[name], times["floor"], strict=True)
            row[clock] = statistics.median(mine[place] / floor[place] for mine, floor in pairs)
            row[f"{clock}_seconds"] = statistics.median(mine[place] for mine in times[name])
    return [about | {"method": name} | row for name, row in rows.items()]


def main(names: list[str], methods: str, variants: str, frozen: int, rounds: int, threads: int) -> None:
    """Measure and print: a table of each case as it ends, its rows as JSON on stderr."""
    torch.set_num_threads(threads)
    able = chosen(methods)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, {threads} used, torch {torch.__version__}")
    for case in cases(names, variants, frozen):
        rows = measure(case, able, rounds)
        print(f"\n{title(case)}   (load {os.getloadavg()[0]:.1f})\n\n{table(rows)}", flush=True)
        for row in rows:
            print(json.dumps(row), file=sys.stderr, flush=True)


def title(case: Case) -> str:
    """Name of a case with what is unusual about it."""
    parts = [case.name, case.objective.replace("_", " ").replace("kl", "KL")]
    parts += [f"{case.frozen} frozen models"] * (case.frozen > 1)
    parts += [f"{case.kept:.0%} kept"] * (case.kept < 1) + ["frozen head"] * case.frozen_head
    return ", ".join(parts + ["bf16"] * (case.dtype == torch.bfloat16))


def table(rows: list[dict]) -> str:
    """Markdown of one case's rows."""
    lines = [
        "| method | processor / floor | wall / floor | processor (s) | wall (s) | memory | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = "" if row["memory"] is None else f"{row['memory']:.3f}"
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        times = (
            f"{row['processor']:.2f} | {row['wall']:.2f} | {row['processor_seconds']:.3f} | {row['wall_seconds']:.3f}"
        )
        lines.append(f"| {row['method']} | {times} | {memory} | {error} |")
    return "\n".join(lines)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(
        given.get("cases", "A,B").split(","),
        given.get("methods", "floor,ours"),
        given.get("variants", "plain"),
        int(given.get("frozen", 1)),
        int(given.get("rounds", 5)),
        int(given.get("threads", 1)),
    )
