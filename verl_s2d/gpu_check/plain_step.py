"""Compute the reference for a step of stage 2a or 2b: plain transformers in float32, one sequence at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

_DIVERGENCE = {
    # (log p_student, log p_teacher) -> nats of each token.
    "forward_kl": lambda log_s, log_t: (log_t.exp() * (log_t - log_s)).sum(-1),
    "reverse_kl": lambda log_s, log_t: (log_s.exp() * (log_s - log_t)).sum(-1),
}


def plain_step(
    student: Path,
    teacher: Path,
    rollouts: Sequence[Mapping[str, torch.Tensor]],
    *,
    objective: str,
    vocab_size: int,
    device: str,
    lora: Mapping[str, torch.Tensor] | None = None,
    rank: int = 4,
    alpha: int = 6,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Compute the token-mean divergence over all rollouts, and its gradient by parameter name.

    Args:
        rollouts: input_ids and loss_mask of each, (tokens,), as in CachedRollouts.
        objective: forward_kl or reverse_kl.
        vocab_size: ids at or above it have probability zero.
        lora: values of LoRA's parameters, which are then the only trained ones.
        rank, alpha: LoRA's rank and alpha.
    """
    from transformers import AutoModelForCausalLM

    def load(path: Path) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").to(device)

    network, frozen = load(student), load(teacher).requires_grad_(False)
    if lora:
        from peft import LoraConfig, get_peft_model

        network = get_peft_model(network, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"))
        result = network.load_state_dict({name: value.float() for name, value in lora.items()}, strict=False)
        if result.unexpected_keys:
            raise ValueError(f"peft knows no parameters {result.unexpected_keys[:3]}")
    tokens = sum(int(row["loss_mask"].sum()) for row in rollouts)
    total = 0.0
    for row in rollouts:
        ids = row["input_ids"].to(device)[None]
        begin = len(row["loss_mask"]) - int(row["loss_mask"].sum()) - 1
        with torch.no_grad():
            log_t = frozen(ids).logits[0, begin:-1, :vocab_size].log_softmax(-1)
        log_s = network(ids).logits[0, begin:-1, :vocab_size].log_softmax(-1)
        share = _DIVERGENCE[objective](log_s, log_t).sum() / tokens
        share.backward()
        total += share.item()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad and p.grad is not None}
    return total, gradients


def relative_difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Divide the norm of the difference by the norm of the expected gradients, over all parameters together.

    Raises:
        ValueError: the gradients are of different parameters.
    """
    if set(found) != set(expected):
        raise ValueError(f"gradients of other parameters: {sorted(set(found) ^ set(expected))[:4]}")
    difference = sum((found[n].float() - g.float()).square().sum().item() for n, g in expected.items())
    return (difference / sum(g.float().square().sum().item() for g in expected.values())) ** 0.5
