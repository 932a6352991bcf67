"""Samples -> scores, part by part, while other parts are still being sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d.data.content import file_digest
from verl_s2d.data.problems import Problem
from verl_s2d.sampling.engine import Completion
from verl_s2d.sampling.shards import Parts, read_kept, write_kept
from verl_s2d.verifiers.registry import Score, Verifier, check, resolve

GENERATIONS = pa.schema(
    [
        ("set", pa.string()),
        ("id", pa.string()),
        ("sample", pa.int32()),
        ("response", pa.string()),
        ("response_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("correct", pa.bool_()),
        ("level", pa.string()),
    ]
)


class Scorer:
    """One thread that scores the parts of a request as they become whole. Leaving the context waits for the part that
    it works on.

    Verifiers are called in a thread by verl's reward workers, too; one by one, because they need not be made for more.

    Args:
        problems: (set, problem) of every prompt of the request.
        name: of the verifier.

    Raises:
        UserError: an unknown verifier.
    """

    def __init__(self, problems: Sequence[tuple[str, Problem]], name: str, tokenizer: Any):
        self._problems, self._name, self._tokenizer = problems, name, tokenizer
        self._verifier = resolve(name)
        file = Path(name.rpartition(":")[0])
        self._scored_by = [name, file_digest(file) if file.is_file() else None]
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._scores: dict[int, Future[list[dict[str, Any]]]] = {}

    def check(self, problem: Problem) -> None:
        """Try the verifier where it will be called. Raises UserError if it does not work."""
        tried = self._thread.submit(check, self._name, of_verifier(problem))
        tried.result()  # no limit: the verifier's own, or else the watchdog's for a stage that is silent

    def score(self, parts: Parts, number: int) -> None:
        """Have one more part scored. Raises what the verifier has raised for an earlier one."""
        for earlier in self._scores.values():
            if earlier.done():
                earlier.result()  # no limit: it is done
        self._scores[number] = self._thread.submit(self._score, parts, number)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of generations.parquet for all parts, in their order; waits for them."""
        return [
            row
            for number in sorted(self._scores)
            for row in self._scores[number].result()  # no limit: as in `check`
        ]

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _score(self, parts: Parts, number: int) -> list[dict[str, Any]]:
        """Rows of a part, which are kept beside it."""
        part = parts[number]
        kept = Path(part.path).with_name(f"scored-{number:05d}")
        made_from = {**part.made_from, "verifier": self._scored_by}
        table = read_kept(kept, made_from, lambda line: print(f"evaluation: {line}", flush=True))
        if table is None:
            of_part = self._problems[slice(*part.made_from["prompts"][:2])]
            scored = [
                row
                for (set_name, problem), samples in zip(of_part, parts.completions(number), strict=True)
                for row in score_samples(set_name, problem, samples, self._verifier, self._tokenizer)
            ]
            table = pa.Table.from_pylist(scored, GENERATIONS)
            write_kept(table, kept, made_from)
        return table.to_pylist()


def of_verifier(problem: Problem) -> dict[str, Any]:
    """Give a problem in the words of the verifier's signature."""
    return {
        "data_source": problem.data_source,
        "ground_truth": problem.ground_truth,
        "extra_info": problem.extra_info,
    }


def score_samples(
    set_name: str, problem: Problem, samples: Sequence[Completion], verifier: Verifier, tokenizer: Any
) -> list[dict[str, Any]]:
    """Rows of generations.parquet for the samples of one problem; `level` is its extra_info.level, as text."""
    rows, level = [], problem.extra_info.get("level")
    for number, completion in enumerate(samples):
        # As verl's reward manager hands responses to a verifier.
        response = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        score = verifier(solution_str=response, **of_verifier(problem))
        rows.append(
            {
                "set": set_name,
                "id": problem.id,
                "sample": number,
                "response": response,
                "response_ids": completion.token_ids,
                "finish_reason": completion.finish_reason,
                "correct": is_correct(score),
                "level": None if level is None else str(level),
            }
        )
    return rows


def is_correct(score: Score) -> bool:
    """Tell whether a verifier's result means "right": full marks in `acc`, or in the score where there is no `acc`.

    Part marks and negative rewards are all "wrong".
    """
    value = score.get("acc", score["score"]) if isinstance(score, Mapping) else score
    return float(value) >= 1.0
