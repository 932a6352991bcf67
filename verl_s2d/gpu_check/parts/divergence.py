"""Check part `divergence`: values, gradients, time and memory of the exact objectives, eager and compiled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.gpu_check.timing import milliseconds, peak_bytes
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.divergence_kernel import OBJECTIVES
from verl_s2d.objectives.gemm import add_head_gradient, hidden_gradient, logits_of, operand
from verl_s2d.objectives.logits import LinearLogits

_VALUE, _GRADIENT, _COMPILED, _SAME, _TIME, _MEMORY, _GRAPHS = 1e-4, 3e-3, 1e-5, 1e-5, 1.25, 1.15, 3
"""Limits. Errors are relative to the largest float64 value; time is relative to the bare products, memory to the blocks
of logits and the results; graphs are counted after 20 different numbers of tokens."""
_BETA = 0.3


@dataclass(frozen=True)
class Problem:
    """Hidden states and heads of both models in bf16; the vocabulary has the tokenizer's size."""

    student: torch.Tensor
    head: torch.Tensor
    teacher: torch.Tensor
    teacher_head: torch.Tensor
    vocabulary: int

    def rows(self, count: int) -> Problem:
        """Return the problem's first tokens."""
        return Problem(self.student[:count], self.head, self.teacher[:count], self.teacher_head, self.vocabulary)


def run(settings: Settings, record: Recorder) -> None:
    """Check all objectives against float64, then special cases, then time and memory at several chunk sizes."""
    problem = _problem(settings)
    exact_rows = problem.rows(8 if settings.on_cpu else 64)
    for objective in OBJECTIVES:
        _errors(record, exact_rows, objective)
    _same(record, exact_rows)
    _graphs(record, problem)
    _nan(record, exact_rows)
    chunks = (16, 32) if settings.on_cpu else (512, 1024, 2048)
    for chunk in chunks:
        _cost(settings, record, problem, chunk)


def _problem(settings: Settings) -> Problem:
    if settings.on_cpu:
        tokens, width, wide, rows, vocabulary = 48, 32, 64, 512, 501
    else:
        tokens, width, wide, rows, vocabulary = 4096, 2048, 4096, 151_936, 151_669
    make = {"device": settings.device, "generator": torch.Generator(settings.device).manual_seed(0)}

    def side(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        head = (2 * size**-0.5 * torch.randn(rows, size, **make)).bfloat16()
        return torch.randn(tokens, size, **make).bfloat16(), head

    return Problem(*side(width), *side(wide), vocabulary)


def _step(problem: Problem, objective: str, *, compiled: bool, chunk: int | None = None) -> tuple[torch.Tensor, ...]:
    """Compute values of each token, and gradients of their mean to hidden states and head."""
    student, head = problem.student.clone().requires_grad_(), problem.head.clone().requires_grad_()
    return _values_and_gradients(problem, objective, student, head, compiled=compiled, chunk=chunk)


def _values_and_gradients(problem, objective, student, head, *, compiled, chunk) -> tuple[torch.Tensor, ...]:
    count = len(student)
    values = divergence(
        LinearLogits(student, head, None),
        LinearLogits(problem.teacher, problem.teacher_head, None),
        objective=objective,
        beta=_BETA,
        weights=torch.full((count,), 1 / count, device=student.device),
        vocab_size=problem.vocabulary,
        chunk_tokens=chunk,
        compiled=compiled,
    ).divergence
    (values.sum() / count).backward()
    return values.detach(), student.grad, head.grad


def _naive(problem: Problem, objective: str) -> tuple[torch.Tensor, ...]:
    """Compute the same in float64, with all logits at once."""
    student, head = (x.double().requires_grad_() for x in (problem.student, problem.head))
    log_s = (student @ head[: problem.vocabulary].T).log_softmax(-1)
    log_t = (problem.teacher.double() @ problem.teacher_head[: problem.vocabulary].double().T).log_softmax(-1)
    if objective == "forward_kl":
        values = (log_t.exp() * (log_t - log_s)).sum(-1)
    elif objective == "reverse_kl":
        values = (log_s.exp() * (log_s - log_t)).sum(-1)
    else:
        mixture = torch.logaddexp(log_t + math.log(_BETA), log_s + math.log1p(-_BETA))
        of_teacher = (log_t.exp() * (log_t - mixture)).sum(-1)
        values = _BETA * of_teacher + (1 - _BETA) * (log_s.exp() * (log_s - mixture)).sum(-1)
    values.mean().backward()
    return values.detach(), student.grad, head.grad


def _errors(record: Recorder, problem: Problem, objective: str) -> None:
    exact = _naive(problem, objective)
    eager = _step(problem, objective, compiled=False)
    compiled = _step(problem, objective, compiled=True)
    record.at_most(f"{objective}: value", _error(eager[0], exact[0]), _VALUE)
    record.at_most(f"{objective}: hidden states' gradient", _norm_error(eager[1], exact[1]), _GRADIENT)
    record.at_most(f"{objective}: head's gradient", _norm_error(eager[2], exact[2]), _GRADIENT)
    record.at_most(f"{objective}: compiled against eager", _error(compiled[0], eager[0].double()), _COMPILED)


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def _norm_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def _same(record: Recorder, problem: Problem) -> None:
    """Check that the divergence is zero if student and teacher are the same."""
    alike = Problem(problem.student, problem.head, problem.student, problem.head, problem.vocabulary)
    for objective in OBJECTIVES:
        values, by_hidden, _ = _step(alike, objective, compiled=False)
        record.at_most(f"{objective}: student = teacher", values.abs().max().item(), _SAME, "nats")
        record.at_most(f"{objective}: student = teacher, gradient", by_hidden.abs().max().item(), _SAME)


def _graphs(record: Recorder, problem: Problem) -> None:
    """Check that a new number of tokens, as in every micro-batch, does not compile a new graph."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for count in range(1, 21):
        _step(problem.rows(2 * count), "reverse_kl", compiled=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    record.expect("graphs after 20 numbers of tokens", 1 <= graphs <= _GRAPHS, graphs, f"1 to {_GRAPHS}", value=graphs)


def _nan(record: Recorder, problem: Problem) -> None:
    """Check that a row of NaN makes only its own value NaN, and that the call ends."""
    broken = Problem(problem.student.clone(), problem.head, problem.teacher, problem.teacher_head, problem.vocabulary)
    broken.student[1] = float("nan")
    began = time.monotonic()
    values, _, _ = _step(broken, "reverse_kl", compiled=False)
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    record.expect("a row of NaN", bad == [1], f"rows {bad} are not finite", "row 1 alone")
    record.figure("a row of NaN took", time.monotonic() - began, "s")


def _cost(settings: Settings, record: Recorder, problem: Problem, chunk: int) -> None:
    student, head = problem.student.clone().requires_grad_(), problem.head.clone().requires_grad_()

    def ours(compiled: bool) -> Callable[[], None]:
        def work() -> None:
            student.grad = head.grad = None
            _values_and_gradients(problem, "reverse_kl", student, head, compiled=compiled, chunk=chunk)

        return work

    rounds = 3
    floor = milliseconds(_bare(problem, chunk), settings.device, rounds=rounds)
    record.figure(f"chunk {chunk}: bare products", floor, "ms")
    for name, compiled in (("compiled", True), ("eager", False)):
        ratio = milliseconds(ours(compiled), settings.device, rounds=rounds) / floor
        if compiled and not settings.on_cpu:
            record.at_most(f"chunk {chunk}: time over the bare products, {name}", ratio, _TIME)
        else:
            record.figure(f"chunk {chunk}: time over the bare products, {name}", ratio)
    peak = peak_bytes(ours(True), settings.device)
    if peak is None:
        record.skip(f"chunk {chunk}: peak memory", "needs a GPU")
        return
    columns, (rows, width), tokens = problem.vocabulary, head.shape, len(student)
    # Two blocks of logits and two of probabilities; the head's gradient and that of hidden states, in float32 and bf16.
    expected = 4 * chunk * columns * 4 + (rows * width + tokens * width) * (4 + 2)
    record.at_most(f"chunk {chunk}: peak memory over what is expected", peak / expected, _MEMORY)


def _bare(problem: Problem, chunk: int) -> Callable[[], None]:
    """Build the bare products into allocated memory: both logits, and both of the student's gradients."""
    device, columns = problem.student.device, problem.vocabulary
    head, teacher_head = problem.head[:columns], problem.teacher_head[:columns]
    logits = torch.empty(chunk, columns, device=device)
    total = torch.zeros(columns, head.shape[1], device=device)
    gradient = operand(torch.zeros_like(logits), head)

    def work() -> None:
        for begin in range(0, len(problem.student), chunk):
            hidden, other = (x[begin : begin + chunk] for x in (problem.student, problem.teacher))
            block = logits[: len(hidden)]
            logits_of(other, teacher_head, block)
            logits_of(hidden, head, block)
            hidden_gradient(gradient[: len(hidden)], head, total.dtype)
            add_head_gradient(total, gradient[: len(hidden)], hidden.float(), first=begin == 0)

    return work
