"""Define what a verifier returns, and how it says that it could not judge a response."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from verl_s2d.errors import Unscored

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

PAUSES = (1.0, 4.0, 16.0)
"""Seconds before each repetition of a call that could not judge; after the last one the response is unscored."""


@dataclass(frozen=True)
class Score:
    """A verifier's verdict on a response.

    Attributes:
        value: the reward, finite; 0 for a wrong answer and for one that exceeds a limit of its own making.
        detail: more numbers for verl's metrics; `acc`, if it differs from the reward, decides what evaluation counts as
            correct.
    """

    value: float
    detail: Mapping[str, Any] = field(default_factory=dict)

    def written(self) -> dict[str, Any]:
        """Write it as verl reads scores: a mapping with `score`."""
        return {**self.detail, "score": self.value}


def retried(call: Callable[[], _T]) -> _T:
    """Make a verifier's call, and repeat it after each of PAUSES while it could not judge.

    Raises:
        Unscored: no attempt could.
    """
    for pause in PAUSES:
        try:
            return call()
        except Unscored as error:
            if error.lasting:
                raise
            _log.warning("verifier: %s; the call is repeated in %g s", error, pause)
            time.sleep(pause)
    return call()
