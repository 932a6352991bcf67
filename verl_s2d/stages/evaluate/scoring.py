"""Score samples part by part, while other parts are still being sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_s2d.data.content import file_digest
from verl_s2d.data.problems import Problem
from verl_s2d.errors import Unscored, UserError
from verl_s2d.sampling.engine import Completion
from verl_s2d.sampling.shards import Parts, read_kept, write_kept
from verl_s2d.verifiers.judge_costs import collect_judged
from verl_s2d.verifiers.registry import Scored, Verifier, at_once, check, files_of, resolve
from verl_s2d.verifiers.score import retried
from verl_s2d.verifiers.unsettled import collect_unsettled

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
        ("unsettled", pa.bool_()),
        ("data_source", pa.string()),
        ("prompt", pa.string()),
        ("ground_truth", pa.string()),
        ("unscored", pa.bool_()),
        ("judge_calls", pa.int32()),
        ("judge_tokens", pa.int32()),
    ]
)


class Scorer:
    """A thread that scores the parts of a request as they are completed. Leaving the context waits for the last part.

    verl's reward workers call verifiers in a thread, too. Calls are sequential, as a verifier need not be thread-safe,
    but for verifiers that say how many they take at once.

    Args:
        problems: (set, problem) of every prompt of the request.
        name: the verifier.

    Raises:
        UserError: an unknown verifier.
    """

    def __init__(self, problems: Sequence[tuple[str, Problem]], name: str, tokenizer: Any):
        self._problems, self._name, self._tokenizer = problems, name, tokenizer
        self._verifier = resolve(name)
        self._scored_by = [name, *([file_digest(Path(file)) for file in files_of(name)] or [None])]
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._scores: dict[int, Future[list[dict[str, Any]]]] = {}

    def check(self, problem: Problem) -> None:
        """Try the verifier in the scoring thread. Raises UserError if it does not work."""
        tried = self._thread.submit(check, self._name, of_verifier(problem))
        tried.result()  # no limit: the verifier's own, or else the watchdog's for a stage that is silent

    def score(self, parts: Parts, number: int) -> None:
        """Queue a part for scoring. Raises the verifier's exception for an earlier part."""
        for earlier in self._scores.values():
            if earlier.done():
                earlier.result()  # no limit: it is done
        self._scores[number] = self._thread.submit(self._score, parts, number)

    def rows(self) -> list[dict[str, Any]]:
        """Wait for all parts and return their rows of generations.parquet, in order."""
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
        """Score a part and store its rows beside it."""
        part = parts[number]
        kept = Path(part.path).with_name(f"scored-{number:05d}")
        made_from = {**part.made_from, "verifier": self._scored_by}
        table = read_kept(kept, made_from, lambda line: print(f"evaluation: {line}", flush=True))
        if table is None:
            of_part = self._problems[slice(*part.made_from["prompts"][:2])]
            with ThreadPoolExecutor(at_once(self._name), "verifier") as threads:
                scored = threads.map(self._score_problem, of_part, parts.completions(number))
            found = [row for rows in scored for row in rows]
            table = pa.Table.from_pylist(found, GENERATIONS)
            # Another attempt asks again about samples that could not be judged.
            if not any(row["unscored"] for row in found):
                write_kept(table, kept, made_from)
        return table.to_pylist()

    def _score_problem(self, of_set: tuple[str, Problem], samples: Sequence[Completion]) -> list[dict[str, Any]]:
        return score_samples(*of_set, samples, self._verifier, self._tokenizer)


def of_verifier(problem: Problem) -> dict[str, Any]:
    """Map a problem to the arguments of a verifier."""
    return {
        "data_source": problem.data_source,
        "ground_truth": problem.ground_truth,
        "extra_info": problem.extra_info,
    }


def score_samples(
    set_name: str, problem: Problem, samples: Sequence[Completion], verifier: Verifier, tokenizer: Any
) -> list[dict[str, Any]]:
    """Score the samples of one problem into rows of generations.parquet; `level` is its extra_info.level, as text.

    `unsettled` marks samples without a verdict, which count as wrong; `unscored` marks those that the verifier could
    not judge and would not if it was asked again, which do not count. `prompt` is the text of the problem's messages.

    Raises:
        UserError: what the verifier needs is not there.
    """
    rows, level = [], problem.extra_info.get("level")
    for number, completion in enumerate(samples):
        # Decoded as verl's reward manager does.
        response = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        with collect_unsettled() as unsettled, collect_judged() as judged:
            score = _judged(verifier, problem, response)
        rows.append(
            {
                "set": set_name,
                "id": problem.id,
                "sample": number,
                "response": response,
                "response_ids": completion.token_ids,
                "finish_reason": completion.finish_reason,
                "correct": score is not None and is_correct(score),
                "level": None if level is None else str(level),
                "unsettled": bool(unsettled),
                "data_source": problem.data_source,
                "prompt": "\n".join(str(message["content"]) for message in problem.messages),
                "ground_truth": str(problem.ground_truth),
                "unscored": score is None,
                "judge_calls": len(judged),
                "judge_tokens": sum(judged),
            }
        )
    return rows


def _judged(verifier: Verifier, problem: Problem, response: str) -> Scored | None:
    try:
        return retried(lambda: verifier(solution_str=response, **of_verifier(problem)))
    except Unscored as error:
        if error.lasting:
            print(f"evaluation: a response to problem {problem.id} is unscored: {error}", flush=True)
            return None
        raise UserError(
            f"The verifier could not judge a response to problem {problem.id}, which would not count as wrong: {error}",
            key="verifier",
            remedy="Repair what it needs and run the same command again: samples and scores are kept.",
        ) from error


def is_correct(score: Scored) -> bool:
    """Report whether a verifier's result means "correct": 1 in `acc`, or in the score where there is no `acc`.

    Partial and negative scores count as wrong.
    """
    value = score.get("acc", score["score"]) if isinstance(score, Mapping) else score
    return float(value) >= 1.0
