"""Choose who gets more pilot: successive halving that drops only those that cannot win any more."""

from __future__ import annotations

from collections.abc import Sequence

from verl_s2d.planner.prediction import Prediction


def losers(predictions: Sequence[Prediction]) -> dict[str, str]:
    """Map the name of each candidate that cannot win any more to the reason.

    A candidate is out when its interval ends below the interval of the best one, or when it is known to be no better
    than measured. One without a prediction yet stays.
    """
    known = [p for p in predictions if p.accuracy is not None]
    out = {p.candidate.name: p.problem for p in predictions if p.problem is not None and not p.blocks}
    if not known:
        return out
    best = max(known, key=lambda p: p.point)
    low = best.interval[0]
    for p in known:
        if p.interval[1] < low:
            out[p.candidate.name] = (
                f"its interval ends at {100 * p.interval[1]:.1f} %, that of {best.candidate.name} begins at "
                f"{100 * low:.1f} %"
            )
    return out


def piloted_roles(predictions: Sequence[Prediction], out: Sequence[str]) -> frozenset[str]:
    """Return the roles of the models on which the remaining candidates rest: only they get more pilot."""
    return frozenset().union(*(p.candidate.needs for p in predictions if p.candidate.name not in out))
