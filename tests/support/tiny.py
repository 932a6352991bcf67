"""Tiny real artefacts for tests: a Qwen3 checkpoint with a word-level tokenizer, and problems in verl's columns."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_s2d.gpu_check import tiny_model
from verl_s2d.gpu_check.tiny_model import WORDS, Shape, write_tokenizer

__all__ = ["WORDS", "score_sum", "write_model", "write_problems", "write_tokenizer"]


def write_model(
    directory: Path,
    *,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    words: list[str] = WORDS,
    tied: bool = False,
) -> Path:
    """A randomly initialised Qwen3 checkpoint of a few thousand parameters, with its tokenizer."""
    shape = Shape(seed=seed, hidden=hidden, layers=layers, tied=tied, tokens=len(words), vocabulary=len(words))
    return tiny_model.write_model(directory, shape, words)


def write_problems(path: Path, count: int, *, seed: int = 0) -> Path:
    """Distinct sums `a + b =` with their answers, in verl's columns."""
    pairs = random.Random(seed).sample([(a, b) for a in range(10) for b in range(10)], count)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{a} + {b} ="}],
            "data_source": "sums",
            "reward_model": {"style": "rule", "ground_truth": str(a + b)},
            "extra_info": {"index": f"sum-{a}-{b}"},
        }
        for a, b in pairs
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def score_sum(data_source: str, solution_str: str, ground_truth: str, extra_info=None, **_: object) -> float:
    """1.0 when the last word of the response is the sum."""
    words = solution_str.replace("<|im_end|>", "").split()
    return float(bool(words) and words[-1] == ground_truth)
