r"""Measure how the math verifier agrees with judged answers, by kind, beside bare math-verify.

    python -m benchmarks.verifier agreement cases=DIR/*.jsonl answers=math500.parquet

A case is {gold, answer, expected: 0 or 1, kind}; kinds that begin with "response:" are whole responses, other answers
are put into a box. Beside those of `cases` are the project's own (tests/data/math-kinds.jsonl), and of the published
answers of MATH-500 each one with itself (right) and with the next one of another text (wrong, unless both are equal).
Bare is math-verify's parse and verify, as verl calls them, with their own limits of time.

A false positive weighs more than a false negative, because reinforcement learning finds it: each is listed, to be read.
With pairs=true every published answer meets every other one, and all pairs that the math verifier takes for equal are
listed.
"""

from __future__ import annotations

import glob
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT
from verl_s2d.errors import UserError
from verl_s2d.verifiers.math.mathematics import Options, judge

_WHOLE = ("response:", "whole responses")
_SHOWN = 100


@dataclass
class Agreement:
    """Command line of `agreement`."""

    cases: str = ""
    """Files of cases, as a shell pattern."""
    answers: str = str(ROOT / "tests" / "data" / "math500-answers.json")
    """MATH-500's answers: a JSON list, or a parquet file in verl's columns."""
    seconds: float = 20.0
    """Limit of a comparison's processor time, generous because agreement is measured here, not speed."""
    pairs: bool = False


@dataclass(frozen=True)
class Judged:
    """An answer with its ground truth, and whether it is right."""

    source: str
    kind: str
    gold: str
    answer: str
    right: bool

    @property
    def response(self) -> str:
        """The answer as a model writes it."""
        return self.answer if self.kind.startswith(_WHOLE) else rf"So the answer is \boxed{{{self.answer}}}."


def of_files(pattern: str) -> Iterator[Judged]:
    """Read cases of the files that match a pattern.

    Raises:
        UserError: no file matches, or a line is no case.
    """
    files = sorted(glob.glob(pattern))
    if not files:
        raise UserError("No such file of cases.", key="cases", value=pattern, remedy="Give a path such as DIR/*.jsonl.")
    for file in files:
        for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
            try:
                case = json.loads(line)
                yield Judged("cases", case["kind"], str(case["gold"]), case["answer"], bool(case["expected"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"Line {number} of {file} is no case: {error!r}",
                    key="cases",
                    remedy="Write {gold, answer, expected, kind} as JSON.",
                ) from error


def of_the_project() -> Iterator[Judged]:
    """Read the project's own cases."""
    for line in (ROOT / "tests" / "data" / "math-kinds.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for side in ("right", "wrong"):
            for answer in row.get(side, ()):
                yield Judged("project", row["kind"], row["truth"], answer, side == "right")


def read_answers(file: str) -> list[str]:
    """Read answers from a JSON list, or a parquet file in verl's columns."""
    if file.endswith(".json"):
        return json.loads(Path(file).read_text())
    import pyarrow.parquet as pq

    return [row["ground_truth"] for row in pq.read_table(file)["reward_model"].to_pylist()]


def equal_pairs(answers: Sequence[str], seconds: float) -> tuple[int, list[tuple[str, str]]]:
    """Compare every answer with every other one; returns the number of pairs, and those that are taken for equal."""
    texts = sorted(set(answers))
    pairs = [Judged("MATH-500", "pair", gold, answer, False) for gold in texts for answer in texts if gold != answer]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        verdicts = list(threads.map(lambda case: ours(case, seconds), pairs))
    return len(pairs), [(case.gold, case.answer) for case, equal in zip(pairs, verdicts, strict=True) if equal]


def of_published(file: str) -> Iterator[Judged]:
    """Pair published answers with themselves, and each with the next one of another text."""
    answers = read_answers(file)
    for number, gold in enumerate(answers):
        yield Judged("MATH-500", "an answer and itself", gold, gold, True)
        other = next((a for a in answers[number + 1 :] + answers[:number] if a != gold), None)
        if other is not None:
            yield Judged("MATH-500", "an answer and the next", gold, other, False)


def bare(case: Judged) -> bool:
    """Judge as verl's scorer `math_verify` does, in this process."""
    from math_verify.grader import verify
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig, parse

    try:
        gold = parse(rf"\boxed{{{case.gold}}}", (LatexExtractionConfig(),))
        answer = parse(case.response, (ExprExtractionConfig(), LatexExtractionConfig()))
        return any(verify(g, p) for g in gold for p in answer)
    except Exception:
        return False


def ours(case: Judged, seconds: float) -> bool | None:
    """Judge with the math verifier; None for a ground truth that it refuses."""
    try:
        return judge(case.response, case.gold, Options(seconds=seconds)).correct
    except UserError:
        return None


def main(options: Agreement) -> None:
    """Print a table by source and kind, and every false positive of the math verifier."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    cases = [*(of_files(options.cases) if options.cases else ()), *of_the_project(), *of_published(options.answers)]
    groups: defaultdict[tuple[str, str], list[tuple[Judged, bool | None, bool]]] = defaultdict(list)
    for case in cases:
        groups[case.source, case.kind].append((case, ours(case, options.seconds), bare(case)))
    columns = ["cases", "kind", "right, wrong", "refused truths", "false positives", "false negatives"]
    columns += ["bare: false positives", "bare: false negatives"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for (source, kind), judged in sorted(groups.items()):
        print(_row(source, kind, judged))
    for source in sorted({source for source, _ in groups}):
        print(_row(source, "**all**", [one for (of, _), judged in groups.items() if of == source for one in judged]))
    for what, wrongly in (("granted to a wrong answer", True), ("refused to a right answer", False)):
        found = [case for judged in groups.values() for case, mine, _ in judged if mine is wrongly is not case.right]
        print(f"\n{what}: {len(found)}")
        for case in found:
            print(f"  {case.source}, {case.kind}: {case.gold[:_SHOWN]!r} and {case.answer[:_SHOWN]!r}")
    if options.pairs:
        number, equal = equal_pairs(read_answers(options.answers), options.seconds)
        print(f"\nof {number:,} pairs of different published answers taken for equal: {len(equal)}")
        for gold, answer in equal:
            print(f"  {gold!r} and {answer!r}")


def _row(source: str, kind: str, judged: Sequence[tuple[Judged, bool | None, bool]]) -> str:
    right = sum(case.right for case, _, _ in judged)
    refused = sum(mine is None for _, mine, _ in judged)
    counts = [
        sum(
            verdict is granted and case.right is not granted
            for case, *verdicts in judged
            for verdict in [verdicts[who]]
        )
        for who in (0, 1)
        for granted in (True, False)
    ]
    return f"| {source} | {kind} | {right}, {len(judged) - right} | {refused} | {' | '.join(map(str, counts))} |"
