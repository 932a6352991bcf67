"""Call the peers of benchmarks.divergence as their users would."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

_TOP_K = 32
# Liger's own name for a label that does not count.
_IGNORED = -100


def peers() -> dict[str, Callable[[Any], list[torch.Tensor]]]:
    """Name -> problem -> gradients, of those that are installed."""
    found: dict[str, Callable[[Any], list[torch.Tensor]]] = {}
    for compiled in (False, True):
        found[f"liger{'-compiled' if compiled else ''}"] = _liger(compiled)
    found["trl"] = _trl
    for chunked in (False, True):
        found[f"verl-top-{_TOP_K}{'-chunked' if chunked else ''}"] = _verl_top_k(chunked)
    return found


def _liger(compiled: bool) -> Callable[[Any], list[torch.Tensor]]:
    """Its chunked JSD at the ends of beta, chunk 256. It divides by the number of tokens that count."""

    def run(problem: Any) -> list[torch.Tensor]:
        try:
            from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        except ImportError as error:
            raise NotImplementedError(str(error)) from error
        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0,
            weight_soft_loss=1.0,
            beta=0.0 if problem.case.objective == "forward_kl" else 1.0,
            ignore_index=_IGNORED,
            compiled=compiled,
            chunk_size=256,
        )
        labels = torch.where(problem.weights != 0, 0, _IGNORED)
        value = loss(problem.student.hidden, problem.student.head, problem.teacher.hidden, problem.teacher.head, labels)
        return list(torch.autograd.grad(value, problem.wanted))

    return run


def _trl(problem: Any) -> list[torch.Tensor]:
    """Its chunked generalised JSD at the ends of beta."""
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError as error:
        raise NotImplementedError(str(error)) from error
    value, *_ = ChunkedDivergenceFunction.apply(
        problem.student.hidden,
        problem.student.head,
        None,
        problem.teacher.hidden,
        problem.teacher.head,
        None,
        0.0 if problem.case.objective == "forward_kl" else 1.0,
        1.0,
        1.0,
        None,
        1.0,
        None,
    )
    return list(torch.autograd.grad((value * problem.weights).sum(), problem.wanted))


def _verl_top_k(chunked: bool) -> Callable[[Any], list[torch.Tensor]]:
    """Its truncated forward KL on logits that exist; the teacher's top ids are made outside the time."""
    cache: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def run(problem: Any) -> list[torch.Tensor]:
        from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk

        if problem.case.objective != "forward_kl":
            raise NotImplementedError("verl has a truncated forward KL only")
        if id(problem) not in cache:
            cache.clear()
            cache[id(problem)] = _teacher_top(problem)
        log_probs, ids = cache[id(problem)]
        config = SimpleNamespace(distillation_loss=SimpleNamespace(use_chunked_topk=chunked, log_prob_min_clamp=None))
        logits = (problem.student.hidden @ problem.student.head.T).unsqueeze(0)
        value = compute_forward_kl_topk(logits, log_probs, ids, config, "thd")["distillation_losses"]
        return list(torch.autograd.grad((value.squeeze(0) * problem.weights).sum(), problem.wanted))

    return run


def _teacher_top(problem: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Nested (1, tokens, k) log-probs and ids."""
    with torch.no_grad():
        log_probs = (problem.teacher.hidden @ problem.teacher.head.T).float().log_softmax(-1)
        top = log_probs.topk(_TOP_K, -1)
    offsets = torch.tensor([0, problem.case.tokens], device=log_probs.device)
    return tuple(torch.nested.nested_tensor_from_jagged(part, offsets) for part in (top.values, top.indices))
