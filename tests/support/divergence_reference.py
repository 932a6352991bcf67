"""Divergences by their definition in float64, and inputs to try them on."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import strategies as st

from verl_s2d.objectives.logits import LinearLogits

OBJECTIVES = st.sampled_from(["forward_kl", "reverse_kl", "jsd"])


def normal(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def definition(student: torch.Tensor, teacher: torch.Tensor, objective: str, beta: float = 0.5) -> torch.Tensor:
    """The formulas as they are written, of logits in float64."""
    log_s, log_t = student.double().log_softmax(-1), teacher.double().log_softmax(-1)

    def kl(log_p, log_q):
        return torch.where(log_p.exp() == 0, 0.0, log_p.exp() * (log_p - log_q)).sum(-1)

    if objective == "forward_kl":
        return kl(log_t, log_s)
    if objective == "reverse_kl":
        return kl(log_s, log_t)
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log(1 - beta))
    return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)


def linear(tokens: int, vocabulary: int, width: int, seed: int, **more) -> LinearLogits:
    hidden, head = normal(tokens, width, seed=seed), normal(vocabulary, width, seed=seed + 1)
    return LinearLogits(hidden, head, **more)


def cast(logits: LinearLogits, dtype: torch.dtype) -> LinearLogits:
    """A leaf in another precision that asks for every gradient."""
    tensors = [None if t is None else t.detach().to(dtype).requires_grad_() for t in logits.tensors]
    return replace(logits, **dict(zip(("hidden", "head", "bias"), tensors, strict=True)))


def materialised(logits: LinearLogits, vocab_size: int | None = None) -> torch.Tensor:
    z = logits.hidden.double() @ logits.head.double().T
    if logits.bias is not None:
        z = z + logits.bias.double()
    if logits.softcap is not None:
        z = logits.softcap * torch.tanh(z / logits.softcap)
    return z[:, :vocab_size] / logits.temperature


def gradients(result: torch.Tensor, logits: LinearLogits) -> list[torch.Tensor]:
    return list(torch.autograd.grad(result, [t for t in logits.tensors if t is not None]))
