"""Say before more seeds are run how small a difference they can show."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import stdev

from scipy.optimize import brentq
from scipy.stats import nct, t

from benchmarks.evidence.markdown import head, line
from benchmarks.evidence.tables import by_name, difference
from verl_s2d.report.row_results import RowResult

LEVEL, POWER = 0.05, 0.8


def detectable(deviation: float, seeds: int) -> float:
    """Compute the difference that a paired two-sided t-test of so many seeds finds with a probability of POWER.

    Args:
        deviation: standard deviation of the difference between seeds, in the unit of the result.

    Raises:
        ValueError: fewer than two seeds.
    """
    if seeds < 2:
        raise ValueError(f"seeds = {seeds}: a deviation between seeds needs two")
    bound = t.ppf(1 - LEVEL / 2, seeds - 1)

    def lacking(shift: float) -> float:
        # T = sqrt(n) mean / sd has a noncentral t distribution with n - 1 degrees; shift = sqrt(n) difference / sd. The
        # other tail is next to nothing at this power.
        return nct.sf(bound, seeds - 1, shift) - POWER

    return brentq(lacking, 0.0, 4 * bound) * deviation / sqrt(seeds)


def power_table(rows: Sequence[RowResult], contrasts: Sequence[tuple[str, str]], seeds: int) -> list[str]:
    """Write, for each pair, how much it varied over the seeds kept, and the smallest difference that `seeds` show."""
    lines = head("row - row", "seeds kept", "sd between seeds", f"found by {seeds} seeds")
    members = by_name(rows)
    for name, base in contrasts:
        found = difference(members, name, base)
        if found is None or len(found["per_seed"]) < 2:
            continue
        deviation = 100 * stdev(seed["mean"] for seed in found["per_seed"])
        smallest = detectable(deviation, seeds)
        lines.append(line(f"{name} - {base}", str(len(found["per_seed"])), f"{deviation:.1f}", f"{smallest:.1f}"))
    return lines
