"""Log how far the top-k sets of student and teacher agree: over a mini-batch, and in each quarter of the responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils.metric import AggregationType, Metric

from verl_s2d.objectives.overlap import QUARTERS, TopKHealth, quarters

OVERLAP_BY_QUARTER = tuple(f"overlap_q{number}" for number in range(1, QUARTERS + 1))
HEALTH_METRICS = (*TopKHealth._fields, *OVERLAP_BY_QUARTER)
_SUM, _TOKENS = "_sum", "_tokens"


def health_metrics(
    values: Mapping[str, torch.Tensor], rows: torch.Tensor, data: TensorDict, share: float, prefix: str
) -> dict[str, Metric]:
    """Return a micro-batch's summands of the means of TopKHealth, and of the overlap's mean in each quarter.

    A quarter's number of tokens is known only when all micro-batches and ranks are: `divide_quarters` then divides.

    Args:
        values: name in TopKHealth -> (tokens,) packed.
        rows: (tokens,) bool, tokens that predict a response token.
        data: verl's micro-batch, with nested input_ids.
        share: what one token adds to a mean over the mini-batch.
        prefix: prefix of the metrics' names.
    """
    sums = {name: values[name][rows].sum() * share for name in TopKHealth._fields}
    quarter = quarters(rows, data["input_ids"].offsets())
    for number, name in enumerate(OVERLAP_BY_QUARTER):
        chosen = quarter == number
        sums[f"{name}{_SUM}"] = values["overlap_ratio"][chosen].sum() * share
        sums[f"{name}{_TOKENS}"] = chosen.sum() * share
    return {f"{prefix}{name}": Metric(AggregationType.SUM, value) for name, value in sums.items()}


def divide_quarters(metrics: dict[str, Any], prefix: str) -> None:
    """Replace each quarter's sums by its mean, which a batch without tokens in the quarter does not have.

    Args:
        metrics: of one mini-batch, gathered from all data-parallel ranks; changed in place.
        prefix: as in `health_metrics`.
    """
    for name in OVERLAP_BY_QUARTER:
        total, tokens = (metrics.pop(f"{prefix}{name}{end}", None) for end in (_SUM, _TOKENS))
        if tokens is not None and (count := _aggregated(tokens)) > 0:
            metrics[f"{prefix}{name}"] = _aggregated(total) / count


def _aggregated(values: Metric | list[Metric]) -> float:
    return float(Metric.aggregate_dp(values) if isinstance(values, list) else values.aggregate())
