"""Means of the top-k sets' agreement over a mini-batch, from micro-batches and ranks of any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric

from verl_s2d.objectives.overlap import TopKHealth
from verl_s2d.signals.in_verl.health_metrics import OVERLAP_BY_QUARTER, divide_quarters, health_metrics

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def micro_batch(lengths: list[int], seed: int) -> tuple:
    """Values of prompts of two tokens and responses, the rows that predict the response, and the batch."""
    sequences = [torch.zeros(2 + length) for length in lengths]
    data = tu.get_tensordict({"input_ids": torch.nested.as_nested_tensor(sequences, layout=torch.jagged)}, {})
    rows = torch.cat([torch.tensor([0, *[1] * length, 0], dtype=torch.bool) for length in lengths])
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(len(rows), generator=generator) for name in TopKHealth._fields}
    return values, rows, data


@settings(deadline=None, max_examples=40)
@given(ranks=st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_the_quarters_weighted_by_their_tokens_are_the_mean_over_the_batch(ranks, seed):
    whole = [[micro_batch(lengths, seed + 7 * i) for i, lengths in enumerate(rank)] for rank in ranks]
    chosen = torch.cat([values["overlap_ratio"][rows] for rank in whole for values, rows, _ in rank])
    share = len(ranks) / len(chosen)
    gathered: dict[str, list[Metric]] = {}
    for rank in whole:
        own: dict[str, Metric] = {}
        for values, rows, data in rank:
            for name, metric in health_metrics(values, rows, data, share, "actor/").items():
                own.setdefault(name, metric.init_list()).extend(metric)
        for name, metric in own.items():
            gathered.setdefault(name, []).append(metric)
    tokens = {q: Metric.aggregate_dp(gathered[f"actor/{q}_tokens"]) for q in OVERLAP_BY_QUARTER}
    assert sum(tokens.values()) == pytest.approx(1)
    assert Metric.aggregate_dp(gathered["actor/overlap_ratio"]) == pytest.approx(chosen.mean().item(), rel=1e-5)
    divide_quarters(gathered, "actor/")
    means = {q: gathered[f"actor/{q}"] for q in OVERLAP_BY_QUARTER if f"actor/{q}" in gathered}
    assert means.keys() == {q for q, share_of_tokens in tokens.items() if share_of_tokens > 0}
    assert sum(tokens[q] * mean for q, mean in means.items()) == pytest.approx(chosen.mean().item(), rel=1e-5)
    assert not any(name.endswith(("_sum", "_tokens")) for name in gathered)
