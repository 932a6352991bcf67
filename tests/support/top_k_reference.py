"""The KLs from a top-k teacher by its definition in float64, and problems to try it on."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.support.divergence_reference import normal
from verl_s2d.objectives.logits import LinearLogits

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.tuples(st.integers(0, 9), st.integers(2, 40), st.floats(0, 1), SEEDS)


def known(teacher: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's k most likely ids and their log-probabilities, of logits."""
    log_probs, ids = teacher.log_softmax(-1).topk(k, dim=-1)
    return ids.int(), log_probs


def exact(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_s, log_t = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def definition(
    student: torch.Tensor, ids: torch.Tensor, log_p: torch.Tensor, tail: str, objective: str = "forward_kl"
) -> torch.Tensor:
    """The formulas as they are written, in float64."""
    if objective == "reverse_kl":
        return _reverse(student, ids, log_p, tail)
    log_p, q = log_p.double(), student.double().softmax(-1).gather(1, ids.long())
    p, mass_p, mass_q = log_p.exp(), log_p.exp().sum(-1), q.sum(-1)
    if tail == "renormalise":
        share = p / mass_p[:, None]
        return (share * (share / (q / mass_q[:, None])).log()).sum(-1)
    outside = torch.where(mass_p < 1 - 1e-14, (1 - mass_p) * ((1 - mass_p) / (1 - mass_q)).log(), 0.0)
    return (p * (log_p - q.log())).sum(-1) + (outside if ids.shape[1] < student.shape[1] else 0)


def _reverse(student: torch.Tensor, ids: torch.Tensor, log_p: torch.Tensor, tail: str) -> torch.Tensor:
    log_p, q = log_p.double(), student.double().softmax(-1).gather(1, ids.long())
    mass_p, mass_q = log_p.exp().sum(-1), q.sum(-1)
    if tail == "renormalise":
        share = q / mass_q[:, None]
        return (share * (share.log() - log_p + mass_p.log()[:, None])).sum(-1)
    inside = (q * (q.log() - log_p)).sum(-1)
    if ids.shape[1] == student.shape[1]:
        return inside
    outside = torch.ones_like(student, dtype=torch.bool).scatter(1, ids.long(), False)
    rest_q = torch.where(outside, student.double().softmax(-1), 0.0).sum(-1)
    return inside + rest_q * (rest_q / (1 - mass_p).clamp(min=torch.finfo(torch.float64).eps)).log()


def problem(shape, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, int]:
    tokens, vocabulary, share, seed = shape
    student, teacher = (normal(tokens, vocabulary, seed=seed + n, scale=scale) for n in range(2))
    return student, teacher, 1 + int(share * (vocabulary - 1))


def linear(tokens: int, vocabulary: int, seed: int, dtype: torch.dtype = torch.float64, **more) -> LinearLogits:
    leaves = [normal(*shape, seed=seed + n) for n, shape in enumerate([(tokens, 4), (vocabulary, 4), (vocabulary,)])]
    return LinearLogits(*(leaf.to(dtype).requires_grad_() for leaf in leaves), **more)


def materialised(logits: LinearLogits) -> torch.Tensor:
    z = logits.hidden.double() @ logits.head.double().T + logits.bias.double()
    if logits.softcap is not None:
        z = logits.softcap * torch.tanh(z / logits.softcap)
    return z / logits.temperature
