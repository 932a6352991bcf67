"""`comparison` through torch.compile: two or three passes over the logits, in C++ on a CPU, in Triton on CUDA."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from types import FunctionType

import torch

from verl_s2d.objectives.divergence_kernel import Comparison, compare_
from verl_s2d.objectives.vocabulary import WholeVocabulary

_logger = logging.getLogger(__name__)

# Rows of a block on a CPU. The kernel itself goes through them one by one, in a core's cache; a call costs as much as a
# row of a small vocabulary.
ROWS = 8

_broken = False


@cache
def _kernel(*variant) -> Callable[..., Comparison]:
    """The compiled comparison of one variant, which is compiled once, and once more for blocks of a single row.

    torch.compile keeps what it made with a function's code, and stops at the eighth variant of one code: every variant
    gets a copy of its own.
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
    """`compare_`, whose arguments these are; compiled anew for another vocabulary, objective, beta or dtype.

    Where compiling fails (no C++ compiler, no Triton), one warning, and `compare_` from then on.
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
        # Nothing has been written yet: it is the compiler that failed, not the kernel.
        _broken = True
        _logger.warning("the divergence is computed without torch.compile, which failed: %s", error)
        return compare_(student, teacher, *arguments)
