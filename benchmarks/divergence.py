"""Full-vocabulary distillation losses side by side: time, peak memory and gradient error, forward and backward.

    python -m benchmarks.divergence [cases=small,A,A4,B,gpu] [rounds=5] [threads=1]

Everybody computes the loss sum_i w_i KL_i from the same hidden states and heads, and its gradients to the student's
hidden states and head. Times are over the floor, the bare matrix products that any exact method needs: both heads
forward, and the student head's two gradients. Rounds are interleaved, ratios are of medians. Memory is the allocator's
peak above the inputs, without the head's gradient, in units of N x V x 4 bytes; gradient error is the norm of the
difference from float64 over the norm, hidden states and head together.

Liger-Kernel and TRL take part where they are installed (liger-kernel>=0.8, trl>=1.16); verl's top-k loss is given the
teacher's top 32, needs no teacher product for that, and is not exact.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.divergence_peers import peers
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import LinearLogits


@dataclass(frozen=True)
class Case:
    """One size. `kept` is the share of tokens that count."""

    name: str
    tokens: int
    student: int
    teacher: int
    vocabulary: int
    objective: str = "forward_kl"
    kept: float = 1.0
    frozen_head: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"


_SIZES = {
    "small": (64, 32, 48, 1000),
    "A": (1024, 256, 512, 32_768),
    "A4": (4096, 256, 512, 32_768),
    "B": (512, 512, 1024, 151_936),
}
_WITH_PEERS = {(torch.float32, name) for name in ("small", "A", "B")} | {(torch.bfloat16, "gpu")}
_GPU = Case("gpu", 8192, 2048, 4096, 151_936, dtype=torch.bfloat16, device="cuda")


def cases(names: list[str]) -> list[Case]:
    """Each size under both KLs, masked to 40 %, with a frozen head, and A in bf16.

    A4, which is there to show that memory does not grow with the tokens, under one KL; `gpu` under both.
    """
    found = []
    for name in names:
        base = _GPU if name == "gpu" else Case(name, *_SIZES[name])
        found.append(base)
        if name != "A4":
            found.append(replace(base, objective="reverse_kl"))
        if name in ("small", "A", "B"):
            found += [replace(base, kept=0.4), replace(base, frozen_head=True)]
        if name == "A":
            found.append(replace(base, dtype=torch.bfloat16))
    return found


@dataclass
class Problem:
    """Inputs of a case; `weights` is (tokens,)."""

    case: Case
    student: LinearLogits
    teacher: LinearLogits
    weights: torch.Tensor

    @staticmethod
    def of(case: Case) -> Problem:
        generator = torch.Generator().manual_seed(0)

        def normal(rows: int, width: int, scale: float) -> torch.Tensor:
            return (scale * torch.randn(rows, width, generator=generator)).to(case.device, case.dtype)

        sides = []
        for width in (case.student, case.teacher):
            hidden = normal(case.tokens, width, 1.0)
            sides.append(LinearLogits(hidden, normal(case.vocabulary, width, 2 / math.sqrt(width))))
        kept = (torch.rand(case.tokens, generator=generator) < case.kept).float()
        weights = (kept / kept.sum().clamp(min=1)).to(case.device)
        sides[0].hidden.requires_grad_()
        sides[0].head.requires_grad_(not case.frozen_head)
        return Problem(case, *sides, weights)

    @property
    def wanted(self) -> list[torch.Tensor]:
        return [self.student.hidden] if self.case.frozen_head else [self.student.hidden, self.student.head]


Contestant = Callable[[Problem], list[torch.Tensor]]


def floor(problem: Problem) -> list[torch.Tensor]:
    """The products that are needed, of the tokens that count, and nothing else."""
    kept = problem.weights != 0
    with torch.no_grad():
        hidden, head = problem.student.hidden[kept], problem.student.head
        logits = hidden @ head.T
        problem.teacher.hidden[kept] @ problem.teacher.head.T
        by_hidden = logits @ head
        return [by_hidden] if problem.case.frozen_head else [by_hidden, logits.T @ hidden]


def naive(problem: Problem) -> list[torch.Tensor]:
    """Both logits and both log-softmaxes in full."""
    log_s = (problem.student.hidden @ problem.student.head.T).float().log_softmax(-1)
    with torch.no_grad():
        log_t = (problem.teacher.hidden @ problem.teacher.head.T).float().log_softmax(-1)
    pair = (log_t, log_s) if problem.case.objective == "forward_kl" else (log_s, log_t)
    value = (pair[0].exp() * (pair[0] - pair[1])).sum(-1)
    return list(torch.autograd.grad((value * problem.weights).sum(), problem.wanted))


def ours(
    problem: Problem, *, hinted: bool = True, chunk_tokens: int | None = None, compiled: bool = True
) -> list[torch.Tensor]:
    """With the token weights known beforehand, as in training, or not."""
    result = divergence(
        problem.student,
        problem.teacher,
        objective=problem.case.objective,
        chunk_tokens=chunk_tokens,
        compiled=compiled,
        **{"weights" if hinted else "mask": problem.weights},
    )
    return list(torch.autograd.grad((result.divergence * problem.weights).sum(), problem.wanted))


def contestants() -> dict[str, Contestant]:
    """Name -> method; the floor first."""
    return {
        "floor": floor,
        "naive": naive,
        "ours": ours,
        "ours, eager": lambda problem: ours(problem, compiled=False),
        "ours, chunk 64": lambda problem: ours(problem, chunk_tokens=64),
        "ours, weights unknown": lambda problem: ours(problem, hinted=False),
    }


def float64_gradients(problem: Problem, chunk: int = 64) -> list[torch.Tensor]:
    """By the definition, a chunk of tokens at a time."""
    student = replace(
        problem.student,
        hidden=problem.student.hidden.detach().double().requires_grad_(),
        head=problem.student.head.detach().double().requires_grad_(not problem.case.frozen_head),
    )
    teacher_head = problem.teacher.head.double()
    total = [torch.zeros_like(student.hidden), torch.zeros_like(student.head)][: len(problem.wanted)]
    for begin in range(0, problem.case.tokens, chunk):
        part = slice(begin, begin + chunk)
        log_s = (student.hidden[part] @ student.head.T).log_softmax(-1)
        log_t = (problem.teacher.hidden[part].double() @ teacher_head.T).log_softmax(-1)
        pair = (log_t, log_s) if problem.case.objective == "forward_kl" else (log_s, log_t)
        loss = ((pair[0].exp() * (pair[0] - pair[1])).sum(-1) * problem.weights[part].double()).sum()
        wanted = [student.hidden, student.head][: len(problem.wanted)]
        total = [a + b for a, b in zip(total, torch.autograd.grad(loss, wanted), strict=True)]
    return total


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


def seconds(problem: Problem, contestant: Contestant) -> float:
    began = time.perf_counter()
    contestant(problem)
    if problem.case.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _distance(gradients: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    return math.sqrt(sum((a.double() - b).square().sum().item() for a, b in zip(gradients, exact, strict=True)))


def measure(case: Case, rounds: int) -> list[dict]:
    """One row per contestant that can do this case."""
    # Peers in the plain cases only: the others are about ourselves, and their rounds would take an hour.
    plain = case.kept == 1 and not case.frozen_head and (case.dtype, case.name) in _WITH_PEERS
    problem, able = Problem.of(case), contestants() | (peers() if plain else {})
    exact = float64_gradients(problem)
    norm = math.sqrt(sum(g.square().sum().item() for g in exact))
    unit = case.tokens * case.vocabulary * 4
    rows = {}
    for name, contestant in list(able.items()):
        try:
            gradients = contestant(problem)  # the first call, which may compile, is not timed
        except (NotImplementedError, torch.OutOfMemoryError) as error:
            print(f"  {name}: left out ({str(error).splitlines()[0]})", file=sys.stderr)
            del able[name]
            continue
        comparable = name != "floor" and "top-k" not in name
        error = _distance(gradients, exact) / norm if comparable else None
        del gradients
        rows[name] = {"error": error, "bytes": peak_bytes(problem, contestant)}
        rows[name]["memory"] = rows[name]["bytes"] / unit
    times: dict[str, list[float]] = {name: [] for name in able}
    for _ in range(rounds):
        for name, contestant in able.items():
            times[name].append(seconds(problem, contestant))
    base = statistics.median(times["floor"])
    about = {
        "case": case.name,
        "objective": case.objective,
        "kept": case.kept,
        "frozen_head": case.frozen_head,
        "dtype": str(case.dtype).removeprefix("torch."),
    }
    return [
        about | {"method": name, "ratio": statistics.median(times[name]) / base, "seconds": base} | row
        for name, row in rows.items()
    ]


def main(names: list[str], rounds: int, threads: int) -> None:
    """Measure and print: a JSON line per method and case, and a table at the end."""
    torch.set_num_threads(threads)
    rows = []
    for case in cases(names):
        for row in measure(case, rounds):
            print(json.dumps(row), flush=True)
            rows.append(row)
    command = f"python -m benchmarks.divergence cases={','.join(names)} rounds={rounds} threads={threads}"
    machine = torch.cuda.get_device_name() if "gpu" in names else platform.processor() or platform.machine()
    print(
        f"\n{command}   ({machine}, {os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[1]:.1f})"
    )
    print(_table(rows))


def _table(rows: list[dict]) -> str:
    """Methods down, cases across; each cell is time ratio / memory / error."""
    columns = list(dict.fromkeys(_column(row) for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["method"], _column(row)): row for row in rows}
    lines = [f"| method | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for method in methods:
        lines.append(f"| {method} | {' | '.join(_cell(cells.get((method, column))) for column in columns)} |")
    return "\n".join(lines)


def _column(row: dict) -> str:
    parts = [row["case"], row["objective"].replace("_", " ").replace("kl", "KL")]
    parts += [f"{row['kept']:.0%} kept"] * (row["kept"] < 1) + ["frozen head"] * row["frozen_head"]
    parts += ["bf16"] * (row["dtype"] == "bfloat16")
    return ", ".join(parts)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    error = "" if row["error"] is None else f" / {row['error']:.0e}"
    return f"{row['ratio']:.2f} / {row['memory']:.2f}{error}"


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    main(given.get("cases", "small,A,A4,B").split(","), int(given.get("rounds", 5)), int(given.get("threads", 1)))
