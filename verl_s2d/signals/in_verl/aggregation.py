"""Aggregate per-token losses into a rank's share of the loss: the warmup's mean and verl's modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding

from verl_s2d.objectives.token_weights import expand_to_tokens, kept_tokens


class Aggregate(Protocol):
    """(tokens,) packed values of a micro-batch -> this rank's share of the loss."""

    def __call__(self, values: torch.Tensor, data: TensorDict) -> torch.Tensor: ...

    def kept_scale(self, data: TensorDict, keep: float) -> torch.Tensor:
        """Compute the factors that turn this aggregation into one over kept tokens; (tokens,), packed.

        Tokens that are not kept have a loss of 0, but a mean over tokens still divides by all tokens, of the batch or
        of each rollout: the factor is all tokens over kept ones. Sums over tokens need no factor. A mean over rollouts
        counts every rollout, also one that keeps no token.

        Args:
            keep: fraction of each rollout's tokens that is kept (objectives.token_weights).
        """


class TokenMean:
    """Mean over the response tokens of the whole batch, on all ranks and micro-batches.

    `loss_mask` marks response tokens; row t predicts token t + 1. FSDP averages over ranks, hence dp_size.
    """

    def __call__(self, values: torch.Tensor, data: TensorDict) -> torch.Tensor:
        predicts = torch.roll(data["loss_mask"].values(), shifts=-1, dims=0).to(values.device)
        return (values * predicts).sum() / max(data["batch_num_tokens"], 1) * data["dp_size"]

    def kept_scale(self, data: TensorDict, keep: float) -> torch.Tensor:
        ids = data["input_ids"]
        return torch.full((len(ids.values()),), tokens_per_kept(data), device=ids.offsets().device)


@dataclass(frozen=True)
class ResponseMean:
    """verl's aggregation of per-token losses over rollouts, as in its policy loss.

    Attributes:
        loss_agg_mode, loss_scale_factor: those of actor_rollout_ref.actor.
    """

    loss_agg_mode: str
    loss_scale_factor: int | None = None

    def __call__(self, values: torch.Tensor, data: TensorDict) -> torch.Tensor:
        mask = data["response_mask"]
        mask = mask.to_padded_tensor(0) if mask.is_nested else mask
        return agg_loss(
            loss_mat=no_padding_2_padding(values, data),
            loss_mask=mask.to(values.device, values.dtype),
            loss_agg_mode=self.loss_agg_mode,
            dp_size=data["dp_size"],
            batch_num_tokens=max(data["batch_num_tokens"], 1),
            global_batch_size=data["global_batch_size"],
            loss_scale_factor=self.loss_scale_factor,
        )

    def kept_scale(self, data: TensorDict, keep: float) -> torch.Tensor:
        offsets, tokens = data["input_ids"].offsets(), len(data["input_ids"].values())
        if self.loss_agg_mode == "seq-mean-token-mean":
            lengths = rollout_lengths(data).to(offsets.device)
            return expand_to_tokens((lengths / kept_tokens(lengths, keep).clamp(min=1)).float(), offsets, tokens)
        factor = tokens_per_kept(data) if self.loss_agg_mode == "token-mean" else 1.0
        return torch.full((tokens,), factor, device=offsets.device)


def rollout_lengths(data: TensorDict) -> torch.Tensor:
    """Count the response tokens of each rollout; (rollouts,) float64."""
    return torch.stack([row.sum() for row in data["loss_mask"].unbind()]).double()


def tokens_per_kept(data: TensorDict) -> float:
    """Read the mini-batch's ratio of response tokens to kept tokens, from any of its micro-batches."""
    return tu.get_non_tensor_data(data, "tokens_per_kept", default=1.0)
