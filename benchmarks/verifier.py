r"""Throughput of the math verifier on clean responses, and with hostile ones among them.

    python benchmarks/verifier.py calls=2000 share=0.1

Clean are pairs of equivalent and of nearly equivalent answers (tests/math_answers.py) at the end of a response of 2,000
characters; hostile are all kinds of tests/hostile_latex.py in equal parts. Blocks of both runs alternate, so that other
load on the machine meets both. No response comes twice.
"""

from __future__ import annotations

import functools
import random
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.hostile_latex import KINDS, TRUTHS
from tests.math_answers import DIFFERENT, SAME
from verl_s2d import arguments
from verl_s2d.rewards.mathematics import Options, judge


@dataclass
class Benchmark:
    calls: int = 2000
    """Of each run in a block."""
    blocks: int = 5
    share: float = 0.1
    """Of hostile responses."""
    threads: int = 4
    seed: int = 0
    answers: str = "tables"
    """Of the clean ones: tables, or integers, which need no algebra at all."""


Case = tuple[str, str]


def clean(r: random.Random, answers: str) -> Case:
    integers = str(r.randint(0, 999)), str(r.randint(0, 999))
    truth, answer = integers if answers == "integers" else r.choice(SAME + DIFFERENT)
    return f"{r.random()} then " * 80 + rf"so the answer is \boxed{{{answer}}}.", truth


def hostile(r: random.Random) -> Case:
    return KINDS[r.choice(list(KINDS))](r), r.choice(TRUTHS)


def throughput(cases: list[Case], threads: ThreadPoolExecutor) -> tuple[float, Counter[str]]:
    """(calls a second, how they were decided)."""
    started = time.perf_counter()
    verdicts = list(threads.map(lambda case: judge(*case, Options()), cases))
    return len(cases) / (time.perf_counter() - started), Counter(verdict.how for verdict in verdicts)


def main(options: Benchmark) -> None:
    r = random.Random(options.seed)
    ordinary = functools.partial(clean, r, options.answers)
    rates: dict[str, list[float]] = {"clean": [], "mixed": []}
    how: dict[str, Counter[str]] = {"clean": Counter(), "mixed": Counter()}
    with ThreadPoolExecutor(options.threads) as threads:
        throughput([ordinary() for _ in range(100)], threads)
        for _ in range(options.blocks):
            runs = {
                "clean": [ordinary() for _ in range(options.calls)],
                "mixed": [hostile(r) if r.random() < options.share else ordinary() for _ in range(options.calls)],
            }
            for name, cases in runs.items():
                rate, counted = throughput(cases, threads)
                rates[name].append(rate)
                how[name] += counted
    ratios = [a / b for a, b in zip(rates["clean"], rates["mixed"], strict=True)]
    for name, values in rates.items():
        decided = ", ".join(f"{kind} {count}" for kind, count in how[name].most_common())
        spread = f"min {min(values):.0f}, max {max(values):.0f}"
        print(f"{name}: {statistics.median(values):7.0f} calls/s ({spread})  {decided}")
    print(
        f"clean / {options.share:.0%} hostile: {statistics.median(ratios):.2f} "
        f"(min {min(ratios):.2f}, max {max(ratios):.2f}; {options.blocks} blocks of {options.calls} calls, "
        f"{options.threads} threads)"
    )


if __name__ == "__main__":
    arguments.run(main, Benchmark)
