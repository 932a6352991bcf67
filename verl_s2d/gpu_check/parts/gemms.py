"""Check part `gemms`: error and speed of the divergence's matrix products, bf16 with float32 sums."""

from __future__ import annotations

import torch

from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.gpu_check.timing import milliseconds
from verl_s2d.objectives.gemm import add_head_gradient, hidden_gradient, logits_of, operand

_LOGITS, _GRADIENTS = 1e-5, 3e-3
"""Limits on the largest error over the largest value. Logits sum exact products; gradients are rounded to bf16."""
_SAMPLED = 64
"""Rows to compare with the exact product."""


def run(settings: Settings, record: Recorder) -> None:
    """Check each product against float64, then time all at sizes that cuBLAS aligns well and badly."""
    if settings.on_cpu:
        tokens, widths, columns = 16, (64,), (501, 512)
    else:
        tokens, widths, columns = 512, (2048, 4096), (151_669, 151_680, 151_936)
    for width in widths:
        _errors(settings, record, tokens, width, columns[0])
        for count in columns:
            _speed(settings, record, tokens, width, count)


def _operands(settings: Settings, tokens: int, width: int, columns: int) -> tuple[torch.Tensor, ...]:
    """Make hidden states and head in bf16, and a gradient of logits in float32."""
    generator = torch.Generator(settings.device).manual_seed(0)
    make = {"device": settings.device, "generator": generator}
    hidden = torch.randn(tokens, width, **make).bfloat16()
    head = (torch.randn(columns, width, **make) * width**-0.5).bfloat16()
    return hidden, head, torch.randn(tokens, columns, **make)


def _errors(settings: Settings, record: Recorder, tokens: int, width: int, columns: int) -> None:
    hidden, head, gradient = _operands(settings, tokens, width, columns)
    rows, name = slice(0, _SAMPLED), f"H {width}, {columns:,} columns"
    logits = logits_of(hidden, head, torch.empty(tokens, columns, device=settings.device))
    record.at_most(f"{name}: error of logits", _error(logits[rows], hidden[rows].double() @ head.double().T), _LOGITS)
    rounded = operand(gradient, head)
    by_hidden = hidden_gradient(rounded, head, gradient.dtype)
    exact = gradient[rows].double() @ head.double()
    record.at_most(f"{name}: error of the hidden states' gradient", _error(by_hidden[rows], exact), _GRADIENTS)
    by_head = torch.zeros(columns, width, device=settings.device)
    for first in (True, False):
        add_head_gradient(by_head, rounded, hidden.float(), first=first)
    exact = 2 * gradient[:, rows].double().T @ hidden.double()
    record.at_most(f"{name}: error of the head's gradient, twice", _error(by_head[rows], exact), _GRADIENTS)


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def _speed(settings: Settings, record: Recorder, tokens: int, width: int, columns: int) -> None:
    hidden, head, gradient = _operands(settings, tokens, width, columns)
    logits, total = torch.empty_like(gradient), torch.zeros(columns, width, device=settings.device)
    wide, rounded = hidden.float(), operand(gradient, head)
    flops = 2 * tokens * width * columns
    for name, work in (
        ("logits", lambda: logits_of(hidden, head, logits)),
        ("hidden gradient", lambda: hidden_gradient(rounded, head, gradient.dtype)),
        ("head gradient", lambda: add_head_gradient(total, rounded, wide)),
    ):
        took = milliseconds(work, settings.device)
        speed = flops / took / 1e9
        record.figure(f"H {width}, {columns:,} columns: {name} {took:.3g} ms", speed, "TFLOP/s")
