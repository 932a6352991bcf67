"""Choose the tokens to learn from, by the ranges of the whole mini-batch over all data-parallel ranks.

The ranges need every token's comparison, so a pass without gradients over the mini-batch comes first. Its comparisons
are stored, and the update selects tokens from them instead of comparing the whole vocabulary again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.engine import BaseEngine

from verl_s2d.objectives.divergence import Divergence
from verl_s2d.objectives.token_noise import rollout_seeds, token_noise
from verl_s2d.objectives.token_weights import BatchRange, batch_range, kept_tokens, select_tokens, third_quadrant
from verl_s2d.signals.in_verl.aggregation import rollout_lengths
from verl_s2d.signals.signal import LossSignal


class _Measured(NamedTuple):
    """A micro-batch as the measuring pass found it; tensors of tokens are in the layout of the logits."""

    ids: torch.Tensor
    seeds: torch.Tensor
    results: Divergence
    ranked: torch.Tensor
    mask: torch.Tensor


class KeptTokens:
    """Applies a signal's selection of tokens to an engine's updates.

    Args:
        signal: its keep_tokens, keep_by and clip_divergence say which tokens.
        engine: the student's, with whole rollouts on each rank.
        loss: loss function of the updates; it calls `record` while `measuring`, else `choose`.
    """

    def __init__(self, signal: LossSignal, engine: BaseEngine, loss: Callable[..., Any]):
        self._signal, self._engine = signal, engine
        self.measuring = False
        self._measured: deque[_Measured] = deque()
        self._range: BatchRange | None = None
        self._seed = 0
        run = engine.forward_backward_batch

        def forward_backward_batch(data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
            if loss_function is loss:
                tu.assign_non_tensor(data, tokens_per_kept=self._tokens_per_kept(data))
                self._measured.clear()
                self.measuring = True
                try:
                    run(data, loss_function, forward_only=True)
                finally:
                    self.measuring = False
                self._range, self._seed = self._whole_batch()
            return run(data, loss_function, forward_only)

        engine.forward_backward_batch = forward_backward_batch

    @property
    def ranks_by(self) -> str:
        """Name the divergence that ranks tokens, whichever is minimised: TIP's reverse KL, for Q3 the forward KL."""
        return "forward_kl" if self._signal.keep_by == "q3" else "reverse_kl"

    def record(self, micro_batch: TensorDict, results: Divergence, ranked: torch.Tensor, mask: torch.Tensor) -> None:
        """Store a micro-batch's comparison by the reverse KL.

        Args:
            ranked: (tokens,) the divergence `ranks_by` of each token.
            mask: (tokens,) nonzero on tokens to select from.
        """
        ids, offsets = micro_batch["input_ids"].values(), micro_batch["input_ids"].offsets()
        self._measured.append(_Measured(ids, rollout_seeds(ids, offsets), results, ranked, mask))

    def choose(self, micro_batch: TensorDict, padded: int | None) -> tuple[Divergence, torch.Tensor, torch.Tensor]:
        """Return the recorded comparison of the next micro-batch, 1 on its kept tokens, and 1 on those of Q3.

        Args:
            padded: the padded sequence length, if sequences are not packed.

        Raises:
            RuntimeError: the engine split the mini-batch into other micro-batches than in the measuring pass.
        """
        ids, seeds, results, ranked, mask = self._measured.popleft()
        if not torch.equal(ids, micro_batch["input_ids"].values()):
            raise RuntimeError("the update's micro-batches differ from those of the measuring pass")
        offsets = micro_batch["input_ids"].offsets()
        if padded is not None:
            offsets = torch.arange(0, len(mask) + 1, padded, device=mask.device)
        kept = select_tokens(
            results.student_entropy,
            ranked,
            offsets,
            by=self._signal.keep_by,
            keep=self._signal.keep_tokens,
            mask=mask,
            extent=self._range,
            noise=token_noise(seeds, offsets, len(mask), batch=self._seed),
        )
        return results, kept, kept * third_quadrant(results.student_entropy, ranked, self._range)

    def _whole_batch(self) -> tuple[BatchRange, int]:
        """Compute the ranges and the seed over all micro-batches and data-parallel ranks."""
        parts = [torch.stack((m.results.student_entropy, m.ranked))[:, m.mask] for m in self._measured]
        mine = torch.cat(parts, -1)
        seed = sum(int(m.seeds.sum()) for m in self._measured)
        group = self._engine.get_data_parallel_group()
        everyone: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(everyone, (mine.cpu(), seed), group=group)
        entropies, ranked = torch.cat([values for values, _ in everyone], -1).to(mine.device)
        extent = batch_range(entropies, ranked, clip_divergence=self._signal.clip_divergence)
        return extent, sum(seed for _, seed in everyone)

    def _tokens_per_kept(self, data: TensorDict) -> float:
        """Divide the mini-batch's response tokens by its kept ones, floor(keep x tokens) of each rollout."""
        lengths = rollout_lengths(data)
        kept = kept_tokens(lengths, self._signal.keep_tokens)
        counts = torch.stack((lengths.sum(), kept.sum())).to(get_device_name())
        dist.all_reduce(counts, group=self._engine.get_data_parallel_group())
        return (counts[0] / counts[1].clamp(min=1)).item()
