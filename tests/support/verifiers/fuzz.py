"""Hostile responses against the math verifier, and what they cost.

    python -m tests.support.verifiers.fuzz cases=100000 seed=0

Fails when a call raises, outlasts its limit, or grants a response that cannot be right.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.verifiers.hostile_latex import KINDS, TRUTHS
from verl_s2d import arguments
from verl_s2d.verifiers.math.mathematics import Options, judge
from verl_s2d.verifiers.process_pool import shared

NEVER_RIGHT = ("deep", "endless", "code")
_PAGE = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Fuzz:
    cases: int = 100_000
    seed: int = 0
    threads: int = 2
    seconds: float = 1.0
    """Processor time of a call."""
    kinds: str = ",".join(KINDS)


@dataclass
class Findings:
    """Findings of a run: calls and seconds by kind, verdicts, the slowest call, resident memory in MB, failures."""

    calls: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    how: Counter[tuple[str, str]] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    worst: tuple[float, str] = (0.0, "")
    growth: float = 0.0
    processes: float = 0.0
    failures: list[str] = field(default_factory=list)


def resident(pid: int | str = "self") -> float:
    """Resident memory of a process, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def fuzz(options: Fuzz) -> Findings:
    """`cases` calls from `threads` threads; case number n depends on the seed and n only."""
    found, lock, numbers = Findings(), threading.Lock(), iter(range(options.cases))
    kinds, verifier = options.kinds.split(","), Options(seconds=options.seconds)
    judge(r"\boxed{\sqrt{2}+1}", r"\sqrt{3}", verifier)
    # Caches of regular expressions and the like fill in the first calls.
    baseline = [resident()]

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
                if number == max(200, options.cases // 20):
                    baseline[0] = resident()
            if number is None:
                return
            r = random.Random(f"{options.seed}/{number}")
            kind = kinds[number % len(kinds)]
            response, truth = KINDS[kind](r), r.choice(TRUTHS)
            started = time.perf_counter()
            try:
                verdict = judge(response, truth, verifier)
                problem = "granted" if verdict.correct and kind in NEVER_RIGHT and truth not in response else None
            except BaseException as error:
                verdict, problem = None, f"{type(error).__name__}: {error}"
            spent = time.perf_counter() - started
            with lock:
                found.calls[kind] += 1
                found.seconds[kind] += spent
                found.worst = max(found.worst, (spent, f"case {number} ({kind}): {response[:70]!r}"))
                if verdict is not None:
                    found.how[kind, verdict.how] += 1
                    found.right[kind] += verdict.correct
                if spent > 4 * options.seconds + 10:
                    problem = f"took {spent:.1f} s"
                if problem:
                    found.failures.append(f"case {number} ({kind}) {problem}: {truth!r} {response[:200]!r}")
            if sys.stderr.isatty() and number % 1000 == 0:
                print(number, file=sys.stderr, end="\r")

    threads = [threading.Thread(target=work) for _ in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.growth = resident() - baseline[0]
    found.processes = max((resident(pid) for pid in shared().pids()), default=0.0)
    return found


def main(options: Fuzz) -> None:
    started = time.perf_counter()
    found = fuzz(options)
    elapsed = time.perf_counter() - started
    outcomes = ("timeout", "died", "raised")
    print(
        f"{'kind':13} {'cases':>7} {'ms/case':>8} {'in child':>8} {'right':>6} " + " ".join(f"{o:>8}" for o in outcomes)
    )
    for kind, calls in found.calls.items():
        child = sum(found.how[kind, o] for o in ("equal", "different", *outcomes))
        by_outcome = " ".join(f"{found.how[kind, o]:8}" for o in outcomes)
        mean = 1000 * found.seconds[kind] / calls
        print(f"{kind:13} {calls:7} {mean:8.2f} {child:8} {found.right[kind]:6} {by_outcome}")
    total = {o: sum(n for (_, how), n in found.how.items() if how == o) for o in outcomes}
    print(
        f"\ncases {sum(found.calls.values())}, seconds {elapsed:.0f}, timeouts {total['timeout']}, "
        f"kills {total['timeout'] + total['died']}, parent's RSS growth {found.growth:.1f} MB, "
        f"largest verifier process {found.processes:.0f} MB, worst call {found.worst[0]:.2f} s\n  {found.worst[1]}"
    )
    for failure in found.failures[:20]:
        print(f"FAILURE {failure}")
    raise SystemExit(1 if found.failures else 0)


if __name__ == "__main__":
    arguments.run(main, Fuzz)
