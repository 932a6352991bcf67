"""Compile `divergence_kernel`: two or three passes over the logits, in C++ on a CPU, in Triton on CUDA."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import FunctionType

import torch

from verl_s2d.objectives.divergence_kernel import Comparison, compare_
from verl_s2d.objectives.vocabulary import WholeVocabulary

_logger = logging.getLogger(__name__)

# Rows per block on a CPU. The kernel works row by row in a core's cache, but a call costs as much as one row of a small
# vocabulary.
ROWS = 8

_broken = False


@cache
def _kernel(*variant) -> Callable[..., Comparison]:
    """Compile the comparison for one variant: once, and once more for blocks of a single row.

    torch.compile caches per code object and stops at its eighth variant, so every variant gets its own copy.
    """
    own = FunctionType(compare_.__code__.replace(), compare_.__globals__, compare_.__name__)
    return torch.compile(own, fullgraph=True)


def compare_fused_(
    student: torch.Tensor,
    teacher: torch.Tensor,
    ids: torch.Tensor | None,
    objective: str,
    beta: float,
    vocabulary: WholeVocabulary,
    masked: bool,
) -> Comparison:
    """Run `compare_` compiled, with its arguments; recompiles for another vocabulary, objective, beta or dtype.

    When compilation fails (no C++ compiler, no Triton), it warns once and runs `compare_` from then on.
    """
    global _broken
    arguments = (ids, objective, beta, vocabulary, masked)
    if _broken:
        return compare_(student, teacher, *arguments)
    for logits in (student, teacher):
        torch._dynamo.maybe_mark_dynamic(logits, 0)
    try:
        variant = (objective, beta, masked, ids is None, student.shape[1], student.dtype, student.device)
        return _kernel(*variant)(student, teacher, *arguments)
    except (
        torch._dynamo.exc.TorchDynamoException,
        torch._dynamo.exc.FailOnRecompileLimitHit,
        torch._inductor.exc.InductorError,
    ) as error:
        # The compiler failed before the kernel ran, so the inputs are still intact.
        _broken = True
        _logger.warning("torch.compile failed, so the divergence runs uncompiled: %s", error)
        return compare_(student, teacher, *arguments)
