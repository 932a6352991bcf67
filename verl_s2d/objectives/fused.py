"""`comparison` through torch.compile: two or three passes over the logits, in C++ on a CPU, in Triton on CUDA."""

from __future__ import annotations

import logging
from functools import cache

import torch

from verl_s2d.objectives.comparison import Comparison, compare_

_logger = logging.getLogger(__name__)

# Rows of a block on a CPU. The kernel itself goes through them one by one, in a core's cache; a call costs as much as a
# row of a small vocabulary.
ROWS = 8

_broken = False


@cache
def _kernel():
    return torch.compile(compare_, fullgraph=True)


def compare_fused_(student: torch.Tensor, teacher: torch.Tensor, *rest) -> Comparison:
    """`compare_`, whose arguments these are; compiled anew for another vocabulary, objective or dtype.

    Where compiling fails (no C++ compiler, no Triton, too many variants), one warning, and `compare_` from then on.
    """
    global _broken
    if _broken:
        return compare_(student, teacher, *rest)
    for logits in (student, teacher):
        torch._dynamo.maybe_mark_dynamic(logits, 0)
    try:
        return _kernel()(student, teacher, *rest)
    except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
        # Nothing has been written yet: it is the compiler that failed, not the kernel.
        _broken = True
        _logger.warning("the divergence is computed without torch.compile, which failed: %s", error)
        return compare_(student, teacher, *rest)
