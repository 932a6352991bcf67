r"""Measure the math verifier's throughput on clean responses, and with hostile ones among them; and the sandbox's.

    python -m benchmarks.verifier calls=2000 share=0.1
    python -m benchmarks.verifier agreement ...        agreement with judged answers: verifier_agreement.py

Clean are answers at the end of a response of 2,000 characters; hostile are all kinds of hostile_latex.py in equal parts
to the same kinds of problems (both in tests/support/verifiers): those of math_answers.py, answers that are
equivalent and that nearly are, about half of which need algebra; and problems whose truths are integers. Blocks with
and without hostile answers alternate, so that other load on the machine meets both. No response comes twice.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.verifiers.hostile_latex import KINDS
from tests.support.verifiers.math_answers import DIFFERENT, SAME
from verl_s2d import arguments
from verl_s2d.sandbox.program import Program, RunLimits
from verl_s2d.sandbox.sandbox import Sandbox
from verl_s2d.verifiers.math.mathematics import Options, judge


@dataclass
class Benchmark:
    calls: int = 2000
    """Of each run in a block; of problems with integers ten times as many, for a block to outlast its slowest calls."""
    blocks: int = 5
    share: float = 0.1
    """Of hostile responses."""
    threads: int = 4
    seed: int = 0
    programs: int = 200
    """Programs to run in the sandbox."""


Case = tuple[str, str]
"""A response, and the truth."""
PROBLEMS: dict[str, tuple[Callable[[random.Random], Case], int]] = {
    "tables of answers": (lambda r: r.choice(SAME + DIFFERENT)[::-1], 1),
    "integers alone": (lambda r: (str(r.randint(0, 999)), str(r.randint(0, 999))), 10),
}
"""An answer and a truth by kind of problem, and how many times the calls."""


def case(r: random.Random, problems: str, share: float) -> Case:
    answer, truth = PROBLEMS[problems][0](r)
    if r.random() < share:
        return KINDS[r.choice(list(KINDS))](r), truth
    return f"{r.random()} then " * 80 + rf"so the answer is \boxed{{{answer}}}.", truth


def throughput(cases: list[Case], threads: ThreadPoolExecutor) -> tuple[float, Counter[str]]:
    """(calls a second, how they were decided)."""
    started = time.perf_counter()
    verdicts = list(threads.map(lambda case: judge(*case, Options()), cases))
    return len(cases) / (time.perf_counter() - started), Counter(verdict.how for verdict in verdicts)


def programs(options: Benchmark) -> None:
    """Print the throughput of trivial programs in the sandbox, one slot a core, also with programs that hang.

    The bound is what hanging programs take from the slots: their number x their limit / slots.
    """
    cores = len(os.sched_getaffinity(0))
    sandbox, limits = Sandbox(slots=cores), RunLimits(seconds=1.0)
    for _ in range(cores):
        sandbox.run(Program(""))
    print("\n| sandboxed programs | programs/s | programs/s and core | seconds | of which hanging ones take |")
    print("|---|---|---|---|---|")
    with ThreadPoolExecutor(cores) as threads:
        for share in (0.0, options.share):
            hanging = round(share * options.programs)
            sources = ["while True: pass"] * hanging + ["print(input())"] * (options.programs - hanging)
            random.Random(options.seed).shuffle(sources)
            started = time.perf_counter()
            list(threads.map(lambda source: sandbox.run(Program(source, "1"), limits), sources))
            seconds = time.perf_counter() - started
            rate, bound = len(sources) / seconds, hanging * limits.seconds / cores
            print(f"| {share:.0%} hang | {rate:.1f} | {rate / cores:.1f} | {seconds:.1f} | {bound:.1f} |", flush=True)
    sandbox.close()


def main(options: Benchmark) -> None:
    r = random.Random(options.seed)
    shares = {"clean": 0.0, "mixed": options.share}
    notes = []
    print(f"| clean answers | clean (calls/s) | with {options.share:.0%} hostile (calls/s) | median ratio of blocks |")
    print("|---|---|---|---|")
    with ThreadPoolExecutor(options.threads) as threads:
        for problems, (_, times) in PROBLEMS.items():
            rates: dict[str, list[float]] = {name: [] for name in shares}
            how: dict[str, Counter[str]] = {name: Counter() for name in shares}
            throughput([case(r, problems, options.share) for _ in range(200)], threads)
            for _ in range(options.blocks):
                for name, share in shares.items():
                    cases = [case(r, problems, share) for _ in range(options.calls * times)]
                    rate, counted = throughput(cases, threads)
                    rates[name].append(rate)
                    how[name] += counted
            ratios = [clean / mixed for clean, mixed in zip(*rates.values(), strict=True)]
            clean, mixed = (f"{statistics.median(values):,.0f}" for values in rates.values())
            spread = f"{min(ratios):.2f}, {max(ratios):.2f}"
            print(f"| {problems} | {clean} | {mixed} | {statistics.median(ratios):.2f} ({spread}) |", flush=True)
            notes += [f"{problems}, {name}: {dict(how[name].most_common())}" for name in shares]
    print(*notes, f"{options.threads} threads, load {os.getloadavg()[0]:.1f}", sep="\n")
    programs(options)
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["agreement"]:
        from benchmarks import verifier_agreement

        del sys.argv[1]
        arguments.run(verifier_agreement.main, verifier_agreement.Agreement)
    else:
        arguments.run(main, Benchmark)
