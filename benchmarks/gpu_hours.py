"""Hours of the nine rows of recipes/qwen3/qwen3-1.7b-from-8b.yaml on 8 GPUs of 80 GB, with the settings of release 0.1
and now. Arithmetic from assumptions, which are printed; nothing here is measured.

    python -m benchmarks.gpu_hours [steps=200]

A pass of FSDP takes as long as its slowest rank, layer by layer: every micro-step costs the longest of the ranks'
micro-batches. These factors over the ideal are simulated, with the lengths below, `steps` steps each, in verl's scheme:
the sequences of a step go to the ranks balanced by tokens; a rank's share of a mini-batch is cut into micro-batches of
so many sequences, or into as few as hold so many tokens, equally many on each rank, balanced and the largest first.
Rollouts end with the longest answer.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

SIGMA, MEAN, CAP = 0.9, 3_000, 16_384
"""Response lengths: log-normal, in tokens, cut at CAP."""
RANKS = 8
BUDGET = 36_864
"""Tokens of a micro-batch, two sequences of full length."""
MS_PER_TOKEN = {"8B": 7.0, "1.7B": 5.0}
"""Decoding, when few sequences are left."""
ROLLOUT_WORK = {"teacher RL": 50.0, "student RL": 30.0, "OPD": 15.0}
"""Seconds that a step's rollouts take when all engines are busy until they end."""
TEACHER_UPDATE, TEACHER_SCORE = 178 / 2.6, 37 / 2.2
STUDENT_UPDATE, STUDENT_SCORE = 37 / 2.6, 8 / 2.2
DISTILLED_UPDATE, WARMUP_UPDATE = 23 / 1.8, 5 / 2.5
"""Seconds a step of the passes at 40 % MFU, were every rank busy all the time: update, and one pass of
log-probabilities, of 1,024 sequences; OPD's update of 512; the warmup's of 64."""
CACHE_TOKENS_PER_SECOND = 70_000
ROWS = {"teacher RL": 2, "student RL": 3, "OPD": 4, "rollout cache": 3, "warmup": 3, "evaluation": 9}
"""Stages that the nine rows share: how many of each kind."""
STEPS = {"teacher RL": 630, "student RL": 630, "OPD": 126, "warmup": 250}
CACHED_PROMPTS = (16_142, 16_142, 8_071)
"""Prompts of the three caches: all labels for two teachers, and one half. Before, 8 rollouts of each."""
WARMUP_READS = 250 * 64
"""Rollouts that a warmup trains on. Now a cache holds as many."""
EVALUATION_MINUTES = (7.0, 4.5)
"""Before; and with answers scored as they come and the longest sets first."""


@dataclass(frozen=True)
class Settings:
    """Assumptions that differ between the columns.

    Attributes:
        dynamic: micro-batches by tokens, else by the numbers of sequences of the recipe then.
        opd_tokens, rl_tokens: length at which stage 2b, and stages 1 and 3, cut a response.
        cached: rollouts in the three caches together.
        passes: passes for log-probabilities in a step of stages 1 and 3: by the actor and by the reference, or by the
            reference alone where the sampler's log-probabilities serve as the actor's.
        overlapped: no step of stages 1 and 3 waits for its longest answers.
    """

    dynamic: bool
    opd_tokens: int
    rl_tokens: int
    cached: int
    evaluation_minutes: float
    passes: int = 2
    overlapped: bool = False


BEFORE = Settings(False, CAP, CAP, 8 * sum(CACHED_PROMPTS), EVALUATION_MINUTES[0])
NOW = Settings(True, 8_192, CAP, ROWS["rollout cache"] * WARMUP_READS, EVALUATION_MINUTES[1])
SHORTER = replace(NOW, rl_tokens=8_192)
BYPASSED = replace(SHORTER, passes=1)
OVERLAPPED = replace(NOW, overlapped=True)


def lengths(generator: np.random.Generator, count: int, cap: int = CAP) -> np.ndarray:
    """(count,) response lengths, float64, in tokens."""
    median = MEAN / math.exp(SIGMA**2 / 2)
    return np.minimum(generator.lognormal(math.log(median), SIGMA, count), cap).clip(1)


def balanced(values: np.ndarray, parts: int, *, equal: bool) -> list[np.ndarray]:
    """Divide lengths into parts of nearly equal sums, the longest first into the emptiest part.

    Args:
        equal: also of equal counts.
    """
    room = -(-len(values) // parts) if equal else len(values)
    chosen: list[list[float]] = [[] for _ in range(parts)]
    sums = np.zeros(parts)
    for value in np.sort(values)[::-1]:
        open_parts = [i for i in range(parts) if len(chosen[i]) < room]
        emptiest = min(open_parts, key=lambda i: sums[i])
        chosen[emptiest].append(value)
        sums[emptiest] += value
    return [np.array(part) for part in chosen]


def micro_sums(share: np.ndarray, micro: int | None, parts: int) -> np.ndarray:
    """Tokens of each micro-batch of one rank's share of a mini-batch, by `micro` sequences, or in so many `parts`."""
    if micro is not None:
        return share.reshape(-1, micro).sum(1)
    return np.sort([part.sum() for part in balanced(share, parts, equal=False)])[::-1]


def slowdown(sequences: int, mini_batch: int, micro: int | None, cap: int, steps: int) -> float:
    """Time of a pass over its ideal, in which all ranks are busy until the last one ends.

    Args:
        sequences, mini_batch: of a step, and of one update of it, over all ranks.
        micro: sequences of a micro-batch; None for BUDGET tokens.
    """
    generator, spent, ideal = np.random.default_rng(0), 0.0, 0.0
    for _ in range(steps):
        shares = balanced(lengths(generator, sequences, cap), RANKS, equal=True)
        for share in shares:
            generator.shuffle(share)
        per_rank = mini_batch // RANKS
        for start in range(0, sequences // RANKS, per_rank):
            parts = [share[start : start + per_rank] for share in shares]
            count = max(math.ceil(part.sum() / BUDGET) for part in parts)
            spent += np.max([micro_sums(part, micro, count) for part in parts], axis=0).sum()
            ideal += sum(part.sum() for part in parts) / RANKS
    return spent / ideal


def mean_length(cap: int) -> float:
    return float(lengths(np.random.default_rng(1), 200_000, cap).mean())


@dataclass(frozen=True)
class Step:
    """Seconds of one step by part, and how many steps a stage has."""

    rollout: float
    scores: float
    update: float
    rest: float
    steps: int

    @property
    def hours(self) -> float:
        return (self.rollout + self.scores + self.update + self.rest) * self.steps / 3600


def stages(chosen: Settings, steps: int) -> dict[str, Step | float]:
    """Kind of stage -> its step, or its hours where it has none."""

    def factor(sequences: int, mini_batch: int, micro: int, cap: int) -> float:
        # Fewer tokens are fewer seconds; the seconds above are those of CAP.
        tokens = mean_length(cap) / mean_length(CAP)
        return tokens * slowdown(sequences, mini_batch, None if chosen.dynamic else micro, cap, steps)

    def rollout(kind: str, model: str, cap: int) -> float:
        tail = 0 if chosen.overlapped and kind != "OPD" else cap * MS_PER_TOKEN[model] / 1000
        return max(tail, ROLLOUT_WORK[kind])

    update, score = factor(1024, 64, 1, chosen.rl_tokens), factor(1024, 1024, 2, chosen.rl_tokens)
    distilled, warm = factor(512, 512, 4, chosen.opd_tokens), factor(64, 64, 1, CAP)
    teacher_scores, student_scores = chosen.passes * TEACHER_SCORE * score, chosen.passes * STUDENT_SCORE * score
    rl = chosen.rl_tokens
    teacher, student = rollout("teacher RL", "8B", rl), rollout("student RL", "1.7B", rl)
    return {
        "teacher RL": Step(teacher, teacher_scores, TEACHER_UPDATE * update, 10, STEPS["teacher RL"]),
        "student RL": Step(student, student_scores, STUDENT_UPDATE * update, 8, STEPS["student RL"]),
        "OPD": Step(rollout("OPD", "1.7B", chosen.opd_tokens), 0, DISTILLED_UPDATE * distilled, 8, STEPS["OPD"]),
        "rollout cache": chosen.cached / 3 * mean_length(CAP) / CACHE_TOKENS_PER_SECOND / 3600,
        "warmup": Step(0, 0, WARMUP_UPDATE * warm, 1.5, STEPS["warmup"]),
        "evaluation": chosen.evaluation_minutes / 60,
    }


def table(columns: dict[str, dict[str, Step | float]]) -> list[str]:
    lines = ["| stage | number | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for kind, number in ROWS.items():
        cells = [_cell(found[kind]) for found in columns.values()]
        lines.append(f"| {kind} | {number} | " + " | ".join(cells) + " |")
    sums = [sum(number * _hours(found[kind]) for kind, number in ROWS.items()) for found in columns.values()]
    return [
        *lines,
        "| all | | " + " | ".join(f"{hours:.0f} h, {RANKS * hours:,.0f} GPU-hours" for hours in sums) + " |",
    ]


def _hours(found: Step | float) -> float:
    return found.hours if isinstance(found, Step) else found


def _cell(found: Step | float) -> str:
    if not isinstance(found, Step):
        return f"{found:.2f} h"
    parts = f"{found.rollout:.0f} + {found.scores:.0f} + {found.update:.0f} + {found.rest:g} s"
    return f"{parts}, {found.hours:.1f} h"


def main(steps: int = 200) -> None:
    """Print assumptions and tables for RESULTS.md."""
    cases: dict[str, Callable[[int | None], float]] = {
        "GRPO update, 1 sequence": lambda micro: slowdown(1024, 64, micro and 1, CAP, steps),
        "log-probabilities, 2": lambda micro: slowdown(1024, 1024, micro and 2, CAP, steps),
        "OPD update, 4": lambda micro: slowdown(512, 512, micro and 4, CAP, steps),
        "warmup update, 1": lambda micro: slowdown(64, 64, micro and 1, CAP, steps),
    }
    print(f"lengths log-normal, mean {MEAN:,} before the cut at {CAP:,}, sigma {SIGMA}; {RANKS} ranks")
    print(f"decoding {MS_PER_TOKEN} ms a token, rollouts at least {ROLLOUT_WORK} s a step")
    print(f"caches {CACHE_TOKENS_PER_SECOND:,} tokens/s")
    ideal = {
        "teacher": (TEACHER_UPDATE, TEACHER_SCORE),
        "student": (STUDENT_UPDATE, STUDENT_SCORE),
        "OPD and warmup": (DISTILLED_UPDATE, WARMUP_UPDATE),
    }
    told = "; ".join(f"{name} {first:.1f} and {second:.1f}" for name, (first, second) in ideal.items())
    print(f"ideal seconds a step, update and one pass of log-probabilities: {told} (updates)\n")
    print(f"| pass, sequences a micro-batch before | by sequences | by {BUDGET:,} tokens |\n|---|---|---|")
    for name, factor in cases.items():
        print(f"| {name} | {factor(1):.2f} | {factor(None):.2f} |", flush=True)
    print("\nSeconds a step: rollout + log-probabilities + update + rest.\n")
    columns = {
        "before": BEFORE,
        "now": NOW,
        f"now, data.response_tokens {SHORTER.rl_tokens}": SHORTER,
        f"response_tokens {BYPASSED.rl_tokens} and the sampler's log-probs": BYPASSED,
        "if GRPO waited for no answer": OVERLAPPED,
    }
    print("\n".join(table({name: stages(chosen, steps) for name, chosen in columns.items()})))


if __name__ == "__main__":
    main(**{key: int(value) for key, value in (argument.split("=") for argument in sys.argv[1:])})
