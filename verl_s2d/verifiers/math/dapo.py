r"""DAPO's convention: ground truths are integers, and the answer has to be that integer as text.

The rules are those published with DAPO, which verl carries: of the last 300 characters, the last `Answer: ...` line is
normalised (units, dollar signs, grouping commas and such removed) and compared as text. verl's own function is called,
so that scores are those of a DAPO run; only its -1 for a wrong answer becomes our 0.
"""

from __future__ import annotations

import re

from verl_s2d.errors import UserError
from verl_s2d.verifiers.math.extraction import Form

MAX_CHARACTERS = 300
"""Of a response, counted from its end, as published."""

_INTEGER = re.compile(r"-?\d+")
_END_OF_THINKING = "</think>"


def require_integer(truth: str) -> None:
    """Raises UserError for a ground truth of another kind."""
    if not _INTEGER.fullmatch(truth):
        raise UserError(
            "DAPO's convention compares integers, and the ground truth is none.",
            key="reward_model.ground_truth",
            value=truth,
            remedy="Use `convention: math` for this data.",
        )


def is_correct(response: str, truth: str, form: Form) -> bool:
    r"""Whether the response's answer is the integer `truth`.

    Args:
        form: `answer`: the published rule; `boxed`: the last \boxed{} of the last 100 characters, not
            normalised; `either`: the `Answer:` line where there is one, else the box, as verl does by default.

    Raises:
        UserError: the ground truth is not an integer.
    """
    require_integer(truth)
    from verl.utils.reward_score import math_dapo

    thinking = response.rfind(_END_OF_THINKING)
    text = response[thinking + len(_END_OF_THINKING) if thinking >= 0 else 0 :][-MAX_CHARACTERS:]
    if form == "answer":
        return bool(math_dapo.is_correct_minerva(text, truth)[0])
    return bool(math_dapo.verify(text, truth, strict_box_verify=form == "boxed")[0])
