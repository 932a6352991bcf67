"""Define the methods of benchmarks.divergence except the peers: problems, floors, the naive one, ours and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from unittest.mock import patch

import torch

from verl_s2d.objectives import gemm
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import ComposedLogits, LinearLogits


@dataclass(frozen=True)
class Case:
    """One size. `kept` is the share of tokens that count; `frozen` models of the teacher's size compose the teacher."""

    name: str
    tokens: int
    student: int
    teacher: int
    vocabulary: int
    objective: str = "forward_kl"
    kept: float = 1.0
    frozen_head: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    frozen: int = 1


FACTORS = {1: (1.0,), 2: (1.25, -0.25), 3: (1.0, 1.0, -1.0)}
"""Number of frozen models -> weights of the composed teacher: the teacher's, ExOPD's and Delta-OPD's."""


@dataclass
class Problem:
    """Inputs of a case; `weights` is (tokens,)."""

    case: Case
    student: LinearLogits
    teachers: tuple[LinearLogits, ...]
    weights: torch.Tensor

    @staticmethod
    def of(case: Case) -> Problem:
        generator = torch.Generator().manual_seed(0)

        def normal(rows: int, width: int, scale: float) -> torch.Tensor:
            return (scale * torch.randn(rows, width, generator=generator)).to(case.device, case.dtype)

        sides = []
        for width in (case.student, *[case.teacher] * case.frozen):
            hidden = normal(case.tokens, width, 1.0)
            sides.append(LinearLogits(hidden, normal(case.vocabulary, width, 2 / math.sqrt(width))))
        kept = (torch.rand(case.tokens, generator=generator) < case.kept).float()
        weights = (kept / kept.sum().clamp(min=1)).to(case.device)
        sides[0].hidden.requires_grad_()
        sides[0].head.requires_grad_(not case.frozen_head)
        return Problem(case, sides[0], tuple(sides[1:]), weights)

    @property
    def teacher(self) -> LinearLogits | ComposedLogits:
        """The only frozen model, or the composed teacher."""
        if self.case.frozen == 1:
            return self.teachers[0]
        return ComposedLogits(self.teachers, FACTORS[self.case.frozen])

    @cached_property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """Both logits, gradients to hidden states and head, of the tokens that count; written once."""
        kept, head = int((self.weights != 0).sum()), self.student.head
        shapes = [(kept, self.case.vocabulary)] * 2 + [(kept, self.case.student), head.shape]
        return tuple(torch.full(shape, 1e-3, dtype=head.dtype, device=head.device) for shape in shapes)

    @property
    def wanted(self) -> list[torch.Tensor]:
        return [self.student.hidden] if self.case.frozen_head else [self.student.hidden, self.student.head]


Contestant = Callable[[Problem], list[torch.Tensor]]


def floor(problem: Problem) -> list[torch.Tensor]:
    """torch.mm's products of the tokens that count, into memory that was written before."""
    kept = problem.weights != 0
    logits, other, by_hidden, by_head = problem.buffers
    with torch.no_grad():
        hidden, head = problem.student.hidden[kept], problem.student.head
        torch.mm(hidden, head.T, out=logits)
        for number, (teacher, factor) in enumerate(_frozen(problem)):
            rows, weight = teacher.hidden[kept], teacher.head.T
            torch.addmm(other, rows, weight, beta=float(number > 0), alpha=factor, out=other)
        torch.mm(logits, head, out=by_hidden)
        if problem.case.frozen_head:
            return [by_hidden]
        return [by_hidden, torch.mm(logits.T, hidden, out=by_head)]


def floor_fresh(problem: Problem) -> list[torch.Tensor]:
    """The same into fresh memory, whose pages a CPU's kernel first has to map and zero."""
    kept = problem.weights != 0
    with torch.no_grad():
        hidden, head = problem.student.hidden[kept], problem.student.head
        logits = hidden @ head.T
        for teacher in problem.teachers:
            teacher.hidden[kept] @ teacher.head.T
        by_hidden = logits @ head
        return [by_hidden] if problem.case.frozen_head else [by_hidden, logits.T @ hidden]


def floor_onednn(problem: Problem) -> list[torch.Tensor]:
    """The products by the faster library each: oneDNN's logits and hidden gradient, results thrown away, MKL's head."""
    if problem.case.dtype != torch.float32 or problem.case.device != "cpu":
        raise NotImplementedError("oneDNN is compared in float32 on a CPU")
    kept = problem.weights != 0
    logits, _, _, by_head = problem.buffers
    with torch.no_grad():
        hidden, head = problem.student.hidden[kept], problem.student.head
        for rows, weight in ((hidden, head), *((t.hidden[kept], t.head) for t in problem.teachers)):
            for part in weight.split(4096):
                torch.ops.mkldnn._linear_pointwise(rows, part, None, "none", [], "")
        by_hidden = torch.ops.mkldnn._linear_pointwise(logits, head.T, None, "none", [], "")
        if problem.case.frozen_head:
            return [by_hidden]
        return [by_hidden, torch.mm(logits.T, hidden, out=by_head)]


def _frozen(problem: Problem) -> list[tuple[LinearLogits, float]]:
    """Frozen models with their weights."""
    return list(zip(problem.teachers, FACTORS[problem.case.frozen], strict=True))


FLOORS = ("floor", "floor-fresh", "floor-onednn")


def naive(problem: Problem) -> list[torch.Tensor]:
    """Both logits and both log-softmaxes in full."""
    log_s = (problem.student.hidden @ problem.student.head.T).float().log_softmax(-1)
    with torch.no_grad():
        log_t = sum(factor * (t.hidden @ t.head.T).float() for t, factor in _frozen(problem)).log_softmax(-1)
    pair = (log_t, log_s) if problem.case.objective == "forward_kl" else (log_s, log_t)
    value = (pair[0].exp() * (pair[0] - pair[1])).sum(-1)
    return list(torch.autograd.grad((value * problem.weights).sum(), problem.wanted))


def ours(
    problem: Problem,
    *,
    hinted: bool = True,
    chunk_tokens: int | None = None,
    compiled: bool = True,
    vocab_size: int | None = None,
) -> list[torch.Tensor]:
    """With the token weights known beforehand, as in training, or not."""
    result = divergence(
        problem.student,
        problem.teacher,
        objective=problem.case.objective,
        chunk_tokens=chunk_tokens,
        compiled=compiled,
        vocab_size=vocab_size,
        **{"weights" if hinted else "mask": problem.weights},
    )
    return list(torch.autograd.grad((result.divergence * problem.weights).sum(), problem.wanted))


def ours_torch_mm(problem: Problem, *, compiled: bool = True) -> list[torch.Tensor]:
    """With torch.mm for every product, as on CPUs that are not AMD's."""
    with patch.object(gemm, "_onednn_is_faster", lambda: False):
        return ours(problem, compiled=compiled)


def contestants() -> dict[str, Contestant]:
    """Name -> method; the floors first."""
    return {
        "floor": floor,
        "floor-fresh": floor_fresh,
        "floor-onednn": floor_onednn,
        "naive": naive,
        "ours": ours,
        "ours-eager": lambda problem: ours(problem, compiled=False),
        "ours-torch-mm": ours_torch_mm,
        "ours-torch-mm-eager": lambda problem: ours_torch_mm(problem, compiled=False),
        "ours-chunk-64": lambda problem: ours(problem, chunk_tokens=64),
        "ours-weights-unknown": lambda problem: ours(problem, hinted=False),
    }


def float64_gradients(problem: Problem, chunk: int = 64) -> list[torch.Tensor]:
    """By the definition, a chunk of tokens at a time."""
    student = replace(
        problem.student,
        hidden=problem.student.hidden.detach().double().requires_grad_(),
        head=problem.student.head.detach().double().requires_grad_(not problem.case.frozen_head),
    )
    frozen = [(teacher.hidden.double(), teacher.head.double().T, factor) for teacher, factor in _frozen(problem)]
    total = [torch.zeros_like(student.hidden), torch.zeros_like(student.head)][: len(problem.wanted)]
    for begin in range(0, problem.case.tokens, chunk):
        part = slice(begin, begin + chunk)
        log_s = (student.hidden[part] @ student.head.T).log_softmax(-1)
        log_t = sum(factor * (hidden[part] @ head) for hidden, head, factor in frozen).log_softmax(-1)
        pair = (log_t, log_s) if problem.case.objective == "forward_kl" else (log_s, log_t)
        loss = ((pair[0].exp() * (pair[0] - pair[1])).sum(-1) * problem.weights[part].double()).sum()
        wanted = [student.hidden, student.head][: len(problem.wanted)]
        total = [a + b for a, b in zip(total, torch.autograd.grad(loss, wanted), strict=True)]
    return total
