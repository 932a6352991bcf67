r"""Score what a data set itself holds: its ground truths in the forms that verifiers read, and its own solutions.

    python -m verl_s2d.verifiers.trial < question.json

Reads {"verifier": name, "files": {set: parquet of data_source, ground_truth and extra_info}} from standard input. Its
last line of output is `S2D {"problem": of an error or null, "key", "remedy", "trials": {set: the fields of Trial}}`.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from verl_s2d.errors import UserError
from verl_s2d.platforms.subprocess_query import answering
from verl_s2d.verifiers.registry import check_solution, of_source, score_of, writer_of

_T = TypeVar("_T")

NO_ANSWER = "I do not know"
FORMS = {
    r"\boxed{}": r"\boxed{{{}}}",
    "Answer:": "Answer: {}",
    "####": "#### {}",
    "<answer>": "<answer>{}</answer>",
    "": "{}",
}
"""Mark that prompts ask for -> how a response writes the answer."""
_SOLUTIONS = ("solution", "answer", "response", "rationale", "reasoning")
_LONGER = 20
"""Characters by which a solution is longer than its answer, at least."""


@dataclass(frozen=True)
class Trial:
    """Scores of a sample of one data set.

    Attributes:
        truth, response, score: one ground truth, as a response in the form that scored most often.
        form: that form's mark; None if no truth scored more than NO_ANSWER.
        no_answer: score of the response NO_ANSWER to the same problem.
        truths, right: sampled problems whose answer can be written as a response, and how many of them scored.
        solutions, solved: solutions in the data, and how many of them scored.
    """

    truth: str
    response: str
    score: float
    form: str | None
    no_answer: float
    truths: int
    right: int
    solutions: int
    solved: int

    def text(self) -> str:
        """Describe the trial in one line."""
        scores = f"{_short(self.response)} -> {self.score:g}, {NO_ANSWER} -> {self.no_answer:g}"
        solved = f"; {self.solved} of {self.solutions} solutions of the data score" if self.solutions else ""
        return f"truth {_short(self.truth)}: {scores}{solved}"


def try_verifier(verifier: str | Mapping[str, Any], problems: Sequence[Mapping[str, Any]], name: str) -> Trial:
    """Score the ground truths and solutions of problems.

    Args:
        problems: data_source, ground_truth and extra_info of each.
        name: name of the data set in errors.

    Raises:
        UserError: the verifier raises or returns no score.
    """

    def tried(call: Callable[[], _T], problem: Mapping[str, Any]) -> _T:
        try:
            return call()
        except UserError as error:
            where = f"(problem {(problem['extra_info'] or {}).get('index')} of {name})"
            message = f"{error.problem.rstrip('.')} {where}."
            raise UserError(message, key=error.key, value=error.value, remedy=error.remedy) from error

    def scored_by(problem: Mapping[str, Any], response: str) -> float:
        return tried(lambda: score_of(verifier, problem, response), problem)

    found, solutions, unwritten = {}, [], 0
    for problem in problems:
        scored_by(problem, "")
        ignorant = scored_by(problem, NO_ANSWER)
        checked = tried(functools.partial(check_solution, verifier, **problem), problem)
        write = writer_of(of_source(verifier, problem["data_source"]))
        responses = {"<answer>": write(**problem)} if write else _written(problem["ground_truth"])
        if None in responses.values():
            unwritten += 1
            continue
        first = not found
        for form, response in responses.items():
            score = scored_by(problem, response)
            if score > ignorant or first:
                found.setdefault(form, []).append((problem, response, score, ignorant))
            if score > ignorant:
                break
        if not checked:
            solutions += [scored_by(problem, text) > ignorant for text in _solutions(problem)]
    if not found:
        problem = problems[0]
        return Trial(_answer(problem["ground_truth"]), "", 0.0, None, 0.0, 0, 0, len(solutions), sum(solutions))
    scored = {form: [shown for shown in members if shown[2] > shown[3]] for form, members in found.items()}
    best = max(scored, key=lambda form: len(scored[form]))
    problem, response, score, ignorant = (scored[best] or found[best])[0]
    return Trial(
        truth=_answer(problem["ground_truth"]),
        response=response,
        score=score,
        form=best if scored[best] else None,
        no_answer=ignorant,
        truths=len(problems) - unwritten,
        right=sum(map(len, scored.values())),
        solutions=len(solutions),
        solved=sum(solutions),
    )


def _written(truth: Any) -> dict[str, str]:
    return {mark: form.format(_answer(truth)) for mark, form in FORMS.items()}


def _answer(truth: Any) -> str:
    """Return the text of a ground truth; of several right ones, as search tasks have them, the first."""
    if isinstance(truth, Mapping) and "target" in truth:
        truth = truth["target"]
    if isinstance(truth, list | tuple) and truth and isinstance(truth[0], str):
        truth = truth[0]
    return str(truth)


def _solutions(problem: Mapping[str, Any]) -> Iterator[str]:
    """Yield the first text of extra_info that is a solution and not the bare answer."""
    shortest = len(_answer(problem["ground_truth"])) + _LONGER
    texts = [(problem["extra_info"] or {}).get(name) for name in _SOLUTIONS]
    yield from [text for text in texts if isinstance(text, str) and len(text) >= shortest][:1]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def main() -> None:
    """Answer one question."""
    import pyarrow.parquet as pq

    answer, question = answering(), json.load(sys.stdin)
    told: dict[str, Any] = {"problem": None, "trials": {}}
    for name, file in question["files"].items():
        try:
            told["trials"][name] = asdict(try_verifier(question["verifier"], pq.read_table(file).to_pylist(), name))
        except UserError as error:
            told |= {"problem": error.problem, "key": error.key, "remedy": error.remedy}
            break
    answer(told)


if __name__ == "__main__":
    main()
