"""Read the rollouts that two models are compared on, and divide them into batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verl_s2d.data.problems import read_problems
from verl_s2d.sampling.prompts import render_prompt


@dataclass(frozen=True)
class ScoredRollout:
    """One sample of a model, with its verdict.

    Attributes:
        prompt, response: token ids; the response is not empty.
        text: the response without special tokens.
        finished: it ended by itself, not at the limit.
    """

    problem: str
    prompt: Sequence[int]
    response: Sequence[int]
    text: str
    finished: bool
    correct: bool

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def read_rollouts(
    generations: str | Path, problems: str | Path, tokenizer: Any, chat_template: Mapping[str, Any]
) -> list[ScoredRollout]:
    """Read generations.parquet of a scored stage; prompts are rendered as they were for sampling.

    Args:
        problems: parquet with the problems that were sampled; answers are not read.
        tokenizer: that of the model that sampled.
    """
    prompts = {
        problem.id: render_prompt(tokenizer, problem.messages, chat_template) for problem in read_problems(problems)
    }
    columns = ["id", "response", "response_ids", "finish_reason", "correct"]
    return [
        ScoredRollout(
            problem=row["id"],
            prompt=prompts[row["id"]],
            response=row["response_ids"],
            text=row["response"],
            finished=row["finish_reason"] == "stop",
            correct=row["correct"],
        )
        for row in pq.read_table(generations, columns=columns).to_pylist()
        if row["response_ids"]
    ]


def batches(rollouts: Sequence[ScoredRollout], tokens: int) -> Iterator[list[int]]:
    """Yield places of rollouts, longest first, with at most `tokens` padded tokens a batch or one rollout."""
    batch: list[int] = []
    for place in sorted(range(len(rollouts)), key=lambda place: -len(rollouts[place])):
        # The first is the longest, to which the others are padded.
        if batch and len(rollouts[batch[0]]) * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
