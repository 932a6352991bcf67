"""Score rollouts under a student and a frozen teacher: exact divergences and the overlap of their likely tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.objectives.overlap import TopKHealth, top_k_health
from verl_s2d.stages.compare.scored_rollouts import ScoredRollout
from verl_s2d.teachers.lm_head_hook import HeadSeam, has_plain_head

LOG_RATIO, ENTROPIES = "log_ratio", ("student_entropy", "teacher_entropy")


@dataclass(frozen=True)
class RolloutScore:
    """Results for one rollout.

    Attributes:
        divergences: (tokens,) float64 on the CPU, nats: the divergence at each response token.
        sums: sums over the response tokens: log_ratio, log pi_T - log pi_S of the sampled token; both entropies;
            top1_agreement; the fields of TopKHealth.
    """

    divergences: torch.Tensor
    sums: dict[str, float]


class FrozenNetwork:
    """Computes the logits that predict response tokens, chunk by chunk where the output embedding is a plain product.

    Args:
        network: a Hugging Face causal language model in evaluation mode.
    """

    def __init__(self, network: torch.nn.Module):
        self._network = network
        self._seam = HeadSeam(network) if has_plain_head(network, network.config) else None

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor) -> LinearLogits | torch.Tensor:
        """Return the logits of chosen positions.

        Args:
            ids: (batch, tokens), padded on the right.
            mask: (batch, tokens), nonzero on tokens that are no padding; None without padding.
            rows: (n,) indices into the flattened positions.
        """
        found: list[LinearLogits | torch.Tensor] = []

        def at_head(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            found.append(LinearLogits(hidden.flatten(0, 1)[rows], weight, bias))
            return hidden.new_zeros(*hidden.shape[:2], 1)

        def run() -> torch.Tensor:
            return self._network(input_ids=ids, attention_mask=mask, use_cache=False).logits

        if self._seam is None:
            return run().flatten(0, 1)[rows]
        with self._seam.using(at_head):
            run()
        return found[0]


def score(
    student: FrozenNetwork,
    teacher: FrozenNetwork,
    rollouts: Sequence[ScoredRollout],
    *,
    objective: str,
    vocab_size: int,
    top_k: int,
    device: str | torch.device = "cpu",
) -> list[RolloutScore]:
    """Score one batch of rollouts under both models, which read the same prompts and responses.

    Args:
        objective: forward_kl, KL(pi_T || pi_S), for rollouts of the teacher (stage 2a); reverse_kl, KL(pi_S || pi_T),
            for those of the student (stage 2b).
        vocab_size: real size of the shared vocabulary.
        top_k: size of the sets of TopKHealth; at most vocab_size.
    """
    ids, mask, rows = (None if x is None else x.to(device) for x in _padded(rollouts))
    sides = [network.logits(ids, mask, rows) for network in (student, teacher)]
    sampled = torch.tensor([token for rollout in rollouts for token in rollout.response], device=device)
    with torch.no_grad():
        exact = divergence(*sides, objective=objective, sampled_ids=sampled, vocab_size=vocab_size)
        health = top_k_health(*sides, k=top_k, vocab_size=vocab_size)
    tokens: dict[str, Any] = {
        LOG_RATIO: exact.teacher_log_prob - exact.student_log_prob,
        **{name: getattr(exact, name) for name in (*ENTROPIES, "top1_agreement")},
        **dict(zip(TopKHealth._fields, health, strict=True)),
    }
    lengths = [len(rollout.response) for rollout in rollouts]
    divergences = exact.divergence.double().cpu().split(lengths)
    sums = {name: [part.sum().item() for part in values.double().split(lengths)] for name, values in tokens.items()}
    return [
        RolloutScore(of_rollout, {name: parts[place] for name, parts in sums.items()})
        for place, of_rollout in enumerate(divergences)
    ]


def _padded(rollouts: Sequence[ScoredRollout]) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return ids and mask, (batch, tokens), and the flattened positions that predict response tokens, (n,) int64."""
    longest = max(map(len, rollouts))
    ids = torch.zeros(len(rollouts), longest, dtype=torch.int64)
    mask, rows = torch.zeros_like(ids), []
    for place, rollout in enumerate(rollouts):
        ids[place, : len(rollout)] = torch.tensor([*rollout.prompt, *rollout.response])
        mask[place, : len(rollout)] = 1
        first = place * longest + len(rollout.prompt) - 1
        rows.append(torch.arange(first, first + len(rollout.response)))
    # Without a mask attention kernels need no matrix of tokens x tokens.
    return ids, None if bool(mask.all()) else mask, torch.cat(rows)
