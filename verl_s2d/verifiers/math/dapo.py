r"""Compare answers by DAPO's convention: ground truths are integers, and the answer has to equal them as text.

verl implements the published rules: the last `Answer: ...` line in the last 300 characters is normalised (units, dollar
signs, grouping commas and the like removed) and compared as text. We call verl's own function, so scores equal those of
a DAPO run, except that a wrong answer scores 0 here and -1 there.
"""

from __future__ import annotations

import re

from verl_s2d.errors import UserError
from verl_s2d.verifiers.math.extraction import Form

MAX_CHARACTERS = 300
"""Characters read from the end of a response, as published."""

_INTEGER = re.compile(r"-?\d+")
_END_OF_THINKING = "</think>"
_MISSING = "[INVALID]"
"""verl's answer of a response without an `Answer:` line."""


def require_integer(truth: str) -> None:
    """Raise UserError unless the ground truth is an integer."""
    if not _INTEGER.fullmatch(truth):
        raise UserError(
            "DAPO's convention compares integers, but the ground truth is not one.",
            key="reward_model.ground_truth",
            value=truth,
            remedy="Use `convention: math` for this data.",
        )


def is_correct(response: str, truth: str, form: Form) -> bool:
    r"""Tell whether the response's answer is the integer `truth`.

    Args:
        form: `answer`: the published rule; `boxed`: the last \boxed{} in the last 100 characters, not normalised;
            `either`: the `Answer:` line if there is one, else the box, as verl does by default.

    Raises:
        UserError: the ground truth is not an integer.
    """
    require_integer(truth)
    from verl.utils.reward_score import math_dapo

    text = _end(response)
    if form == "answer":
        return bool(math_dapo.is_correct_minerva(text, truth)[0])
    return bool(math_dapo.verify(text, truth, strict_box_verify=form == "boxed")[0])


def extract(response: str, form: Form) -> str | None:
    """Extract the answer that `is_correct` would compare; None if there is none.

    Args:
        form: as in `is_correct`.
    """
    from verl.utils.reward_score import math_dapo

    text, found = _end(response), None
    if form != "boxed":
        found = math_dapo.is_correct_minerva(text, "")[1]
        found = None if found == _MISSING else found
    if form != "answer" and found is None:
        found = math_dapo.is_correct_strict_box(text, "")[1]
    return found or None


def _end(response: str) -> str:
    thinking = response.rfind(_END_OF_THINKING)
    return response[thinking + len(_END_OF_THINKING) if thinking >= 0 else 0 :][-MAX_CHARACTERS:]
