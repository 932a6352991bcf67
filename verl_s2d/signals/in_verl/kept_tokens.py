"""Choose the tokens that TIP keeps, by the ranges of the whole mini-batch over all data-parallel ranks.

The ranges need every token's comparison, so a pass without gradients over the mini-batch comes first. Its comparisons
are stored, and the update selects tokens from them instead of comparing the whole vocabulary again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.engine import BaseEngine

from verl_s2d.objectives.divergence import Divergence
from verl_s2d.objectives.token_weights import BatchRange, batch_range, kept_tokens, soft_or_weights
from verl_s2d.signals.in_verl.aggregation import rollout_lengths


class KeptTokens:
    """Applies TIP's token selection to an engine's updates.

    Args:
        keep: fraction of each rollout's tokens that is kept.
        engine: the student's, with whole rollouts on each rank.
        loss: loss function of the updates; it calls `record` while `measuring`, else `choose`.
    """

    def __init__(self, keep: float, engine: BaseEngine, loss: Callable[..., Any]):
        self._keep, self._engine = keep, engine
        self.measuring = False
        self._measured: deque[tuple[torch.Tensor, Divergence, torch.Tensor]] = deque()
        self._range: BatchRange | None = None
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
                self._range = self._whole_range()
            return run(data, loss_function, forward_only)

        engine.forward_backward_batch = forward_backward_batch

    def record(self, micro_batch: TensorDict, results: Divergence, mask: torch.Tensor) -> None:
        """Store a micro-batch's comparison by the reverse KL, and the mask of tokens to select from."""
        self._measured.append((micro_batch["input_ids"].values(), results, mask))

    def choose(self, micro_batch: TensorDict, padded: int | None) -> tuple[Divergence, torch.Tensor]:
        """Return the recorded comparison of the next micro-batch, and 1 on its kept tokens, 0 elsewhere.

        Args:
            padded: the padded sequence length, if sequences are not packed.

        Raises:
            RuntimeError: the engine split the mini-batch into other micro-batches than in the measuring pass.
        """
        ids, results, mask = self._measured.popleft()
        if not torch.equal(ids, micro_batch["input_ids"].values()):
            raise RuntimeError("the update's micro-batches differ from those of the measuring pass")
        offsets = micro_batch["input_ids"].offsets()
        if padded is not None:
            offsets = torch.arange(0, len(mask) + 1, padded, device=mask.device)
        return results, soft_or_weights(
            results.student_entropy, results.divergence, offsets, keep=self._keep, mask=mask, extent=self._range
        )

    def _whole_range(self) -> BatchRange:
        """Compute the ranges over all micro-batches and data-parallel ranks."""
        mine = torch.cat(
            [torch.stack((r.student_entropy[mask], r.divergence[mask])) for _, r, mask in self._measured], -1
        )
        group = self._engine.get_data_parallel_group()
        everyone = [None] * dist.get_world_size(group)
        dist.all_gather_object(everyone, mine.cpu(), group=group)
        return batch_range(*torch.cat(everyone, -1).to(mine.device))

    def _tokens_per_kept(self, data: TensorDict) -> float:
        """Divide the mini-batch's response tokens by its kept ones, floor(keep x tokens) of each rollout."""
        lengths = rollout_lengths(data)
        counts = torch.stack((lengths.sum(), kept_tokens(lengths, self._keep).sum())).to(get_device_name())
        dist.all_reduce(counts, group=self._engine.get_data_parallel_group())
        return (counts[0] / counts[1].clamp(min=1)).item()
