"""Check the aggregation and the token layout of the full-vocabulary loss, without an engine."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding

from verl_s2d.signals.in_verl.aggregation import ResponseMean, TokenMean
from verl_s2d.teachers.token_layout import in_logits_layout, next_tokens


def nested(*rows: list[int]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def cached(*masks: list[int], batch_num_tokens: int, dp_size: int = 1) -> TensorDict:
    """A micro-batch of cached rollouts: the mask covers prompt and response."""
    return tu.get_tensordict(
        {"input_ids": nested(*masks), "loss_mask": nested(*masks)},
        {"batch_num_tokens": batch_num_tokens, "dp_size": dp_size, "sp_size": 1},
    )


def weights(aggregate, data: TensorDict, tokens: int) -> torch.Tensor:
    zeros = torch.zeros(tokens, requires_grad=True)
    return torch.autograd.grad(aggregate(zeros, data), zeros)[0]


def test_the_row_before_each_response_token_counts_and_no_other():
    data = cached([0, 0, 1, 1], [0, 1], batch_num_tokens=3)
    torch.testing.assert_close(weights(TokenMean(), data, 6), torch.tensor([0, 1, 1, 0, 1, 0]) / 3)


def test_a_rank_gives_its_share_of_the_global_token_mean():
    """Divided by the whole batch's tokens, times the ranks that FSDP averages over."""
    values = torch.tensor([0.5, 2.0, 7.0])
    whole = TokenMean()(values, cached([0, 1, 1], batch_num_tokens=2))
    share = TokenMean()(values, cached([0, 1, 1], batch_num_tokens=8, dp_size=2))
    assert share.item() == pytest.approx(whole.item() / 4 * 2)


def test_no_response_token_is_a_loss_of_zero():
    data = cached([0, 0, 0], [0], batch_num_tokens=0)
    assert TokenMean()(torch.ones(4), data).item() == 0
    assert (weights(TokenMean(), data, 4) == 0).all()


@pytest.mark.parametrize(
    "mode", ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
)
def test_rollouts_are_aggregated_as_in_verls_policy_loss(mode):
    data = tu.get_tensordict(
        {
            "prompts": nested([5, 6], [7]),
            "responses": nested([1, 2, 3], [4]),
            "input_ids": nested([5, 6, 1, 2, 3], [7, 4]),
            "response_mask": nested([1, 0, 1], [1]),
        },
        {"batch_num_tokens": 11, "dp_size": 2, "global_batch_size": 4},
    )
    values = torch.arange(7.0)
    mask = torch.tensor([[1.0, 0, 1], [1, 0, 0]])
    expected = agg_loss(
        no_padding_2_padding(values, data), mask, mode, 2, batch_num_tokens=11, global_batch_size=4, loss_scale_factor=9
    )
    ours = ResponseMean(mode, 9)(values, data)
    assert ours.item() == pytest.approx(expected.item())
    # Rows 1 and 3 predict the first rollout's masked-in tokens, row 5 the second's.
    given = weights(ResponseMean(mode, 9), data, 7)
    assert given.nonzero().squeeze(-1).tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    ("mode", "factors"),
    [
        ("token-mean", [2.5] * 7),
        ("token-sum", [1] * 7),
        ("seq-mean-token-sum", [1] * 7),
        ("seq-mean-token-sum-norm", [1] * 7),
        # Three tokens of which one is kept; one of which none is.
        ("seq-mean-token-mean", [3] * 5 + [1] * 2),
    ],
)
def test_the_scale_of_kept_tokens_is_that_of_the_mode(mode, factors):
    data = tu.get_tensordict(
        {"input_ids": nested([5, 6, 1, 2, 3], [7, 4]), "loss_mask": nested([1, 1, 1], [1])}, {"tokens_per_kept": 2.5}
    )
    assert ResponseMean(mode).kept_scale(data, 0.4).tolist() == factors


def test_tokens_are_laid_where_a_packing_and_a_padding_engine_keep_their_logits():
    data = tu.get_tensordict({"input_ids": nested([10, 11, 12], [20])}, {"sp_size": 1})
    assert next_tokens(data).tolist() == [11, 12, 20, 10]
    packed = torch.tensor([1.0, 2, 3, 4])
    assert in_logits_layout(packed, data, 4, padded=None).tolist() == [1, 2, 3, 4]
    assert in_logits_layout(packed, data, 6, padded=None).tolist() == [1, 2, 3, 4, 0, 0]
    assert in_logits_layout(packed, data, 6, padded=3).tolist() == [1, 2, 3, 4, 0, 0]
    assert in_logits_layout(packed, data, 6, padded=None, fill=9.0).tolist() == [1, 2, 3, 4, 9, 9]
    assert in_logits_layout(packed, data, 8, padded=4, fill=9.0).tolist() == [1, 2, 3, 9, 4, 9, 9, 9]
    assert in_logits_layout(packed, data, 8, padded=4).tolist() == [1, 2, 3, 0, 4, 0, 0, 0]
