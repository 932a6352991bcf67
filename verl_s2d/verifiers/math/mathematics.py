r"""Verify mathematical answers: 1.0 if the final answer is equivalent to the ground truth, else 0.0.

    verifier: {name: math, form: boxed, convention: math, seconds: 2}

| option | default | meaning |
|---|---|---|
| form | either | `boxed`: the last \boxed{}, or several in a row; `answer`: the last line `Answer: ...`; |
| | | `either`: the later of the two (a box counts more than a line in prose), or a last line `#### 72` |
| convention | math | `math`: equivalence; `dapo`: DAPO's string match against an integer, see dapo.py |
| seconds | 2.0 | CPU time limit of one comparison, and twice that in a second attempt; then it counts as wrong |

Ground truths are answers, numbers of any type, or solutions that mark their answer (reference_answers.py). Values are
compared exactly; a decimal stands for a number without an end if six digits or more are right. A unit may be left out.

Only text after the last </think> counts. Responses are untrusted: answers that need algebra are compared in a separate
process (verifier_process.py) with limits on time and memory; an answer that exceeds them is wrong. Most answers need no
algebra and are decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from verl_s2d.data.ground_truths import ground_truth as formula
from verl_s2d.errors import Unscored, UserError
from verl_s2d.verifiers.math import dapo
from verl_s2d.verifiers.math.answer_limits import is_too_complex, is_too_long, is_unprintable
from verl_s2d.verifiers.math.compare_forms import same_form
from verl_s2d.verifiers.math.extraction import Form, final_answer
from verl_s2d.verifiers.math.normal_form import Answer, normal_form
from verl_s2d.verifiers.math.reference_answers import reference_answer
from verl_s2d.verifiers.process_pool import shared

Convention = Literal["math", "dapo"]


@dataclass(frozen=True)
class Options:
    """Options of `verifier: {name: math, ...}`."""

    form: Form = "either"
    convention: Convention = "math"
    seconds: float = 2.0


@dataclass(frozen=True)
class Verdict:
    """A score and its reason.

    Attributes:
        correct: the answer is right.
        how: `text`, `number`, `screened` (decided here), `none` (no answer found), `dapo`, or the process's outcome:
            `equal`, `different`, `raised`, `timeout`, `died`.
    """

    correct: bool
    how: str


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **options: Any
) -> float:
    """Score a response: 1.0 if its final answer is right, else 0.0.

    Raises:
        Unscored: the process that compares is killed from outside, or does not start.
        UserError: an option or the problem's ground truth is unusable, or math-verify is not installed.
    """
    chosen = _options(tuple((name, options[name]) for name in Options.__dataclass_fields__ if name in options))
    return float(judge(solution_str, ground_truth, chosen).correct)


def judge(response: Any, ground_truth: Any, options: Options | None = None) -> Verdict:
    """Judge a response and give the reason. Raises UserError as compute_score does."""
    options = options or Options()
    truth = reference_answer(ground_truth)
    if not isinstance(response, str):
        return Verdict(False, "none")
    if options.convention == "dapo":
        return Verdict(dapo.is_correct(response, truth, options.form), "dapo")
    answer = final_answer(response, options.form)
    if not answer:
        return Verdict(False, "none")
    if answer == truth:
        return Verdict(True, "text")
    if is_too_long(answer, truth) or is_unprintable(answer):
        return Verdict(False, "screened")
    return _compare(normal_form(truth), normal_form(answer), options.seconds)


def extract(response: str, **options: Any) -> str | None:
    """Extract the answer that a response would be scored by; None if it has none. No ground truth is read.

    Raises:
        UserError: an option is unusable.
    """
    chosen = _options(tuple(options.items()))
    find = dapo.extract if chosen.convention == "dapo" else final_answer
    return find(response, chosen.form)


def check_answer(ground_truth: Any, extra_info: Mapping[str, Any], **options: Any) -> None:
    """Raise UserError for a ground truth that is not LaTeX with balanced braces, or for DAPO not an integer."""
    truth = reference_answer(ground_truth)
    if _options(tuple(options.items())).convention == "dapo":
        dapo.require_integer(truth)
    elif formula(truth, "formula") is None:
        raise UserError(
            "The ground truth is no formula: it is too long, or its braces are not balanced.",
            key="reward_model.ground_truth",
            value=truth[:200],
            remedy="Correct it, or leave the problem out.",
        )


def check(**options: Any) -> None:
    r"""Raise UserError unless the verifier works on this machine: \boxed{1/2} has to equal 0.5, and similar cases.

    The comparisons run in a process like that of training, with its limits.
    """
    chosen = _options(tuple(options.items()))
    if chosen.convention == "dapo":
        cases = [(r"Answer: 34", "34", True), ("Answer: 35", "34", False)]
        chosen = Options("answer", "dapo")
    else:
        cases = [(r"\boxed{1/2}", "0.5", True), (r"\boxed{\frac{2}{\sqrt 2}}", r"\sqrt{2}", True)]
        cases += [(r"\boxed{\sqrt 3}", r"\sqrt{2}", False), (r"\boxed{(1,2]}", "(1,2)", False)]
        chosen = Options("boxed", "math", max(chosen.seconds, 10.0))
        try:
            outcome = shared().compare("0.5", r"\frac{1}{2}", chosen.seconds)
        except Unscored as error:
            raise _broken(str(error)) from error
        if outcome != "equal":
            raise _broken(f"comparing 1/2 with 0.5 gave {outcome!r}")
    for response, truth, expected in cases:
        try:
            verdict = judge(response, truth, chosen)
        except UserError:
            raise
        except Exception as error:
            raise _broken(f"{type(error).__name__}: {error}") from error
        if verdict.correct != expected:
            raise _broken(f"{response} against {truth} is {verdict.how!r}, so {float(verdict.correct)}")


def _broken(problem: str) -> UserError:
    return UserError(
        f"The math verifier does not work here: {problem}.",
        key="verifier",
        value="math",
        remedy='pip install "math-verify>=0.9,<0.10", or score with a verifier of your own (file.py:function).',
    )


def _options(given: tuple[tuple[str, Any], ...]) -> Options:
    known = [field.name for field in fields(Options)]
    for name, value in given:
        allowed = {"form": get_args(Form), "convention": get_args(Convention)}.get(name)
        if name not in known:
            raise UserError(
                "The math verifier has no such option.",
                key=f"verifier.{name}",
                value=value,
                remedy=f"Options are {', '.join(known)}.",
            )
        if allowed is not None and value not in allowed:
            raise UserError(
                "Not a choice.", key=f"verifier.{name}", value=value, remedy=f"Choose one of {', '.join(allowed)}."
            )
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "seconds" and not (number and 0 < value <= 600):
            raise UserError("Not a time limit.", key="verifier.seconds", value=value, remedy="Give 0 < seconds <= 600.")
    return Options(**dict(given))


def _compare(truth: Answer, answer: Answer, seconds: float) -> Verdict:
    decided = same_form(truth, answer)
    return Verdict(*decided) if decided is not None else _by_algebra(truth, answer, seconds)


def _by_algebra(truth: Answer, answer: Answer, seconds: float) -> Verdict:
    if not answer.text or is_too_complex(answer.text, truth.text, rational=truth.value is not None):
        return Verdict(False, "screened")
    texts = [side.text for side in (truth, answer)]
    if truth.percent != answer.percent:
        texts = [rf"\frac{{{side.text}}}{{100}}" if side.percent else side.text for side in (truth, answer)]
    outcome = shared().compare(*texts, seconds)
    return Verdict(outcome == "equal", outcome)
