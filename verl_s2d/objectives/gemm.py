"""Multiply bf16 or fp16 matrices with sums in float32.

Logits rounded to bf16 cost two digits of the gradient. On CUDA the tensor cores take low-precision operands and write
float32; on a CPU operands are widened block by block, so that no widened copy of a whole head exists.

torch.mm calls MKL, which uses slow kernels on CPUs that are not Intel's. On an AMD EPYC of 2024 with one thread,
oneDNN's float32 kernels took 0.4x the time for logits and 0.6x for the gradient of hidden states; the head's gradient
gained nothing. On AMD CPUs these products therefore use oneDNN, block by block, because its operator has no `out`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from verl_s2d.objectives.buffers import reinterpret_rows

_BLOCK = 4096
# Smaller products take microseconds either way.
_ONEDNN_FROM = 1 << 22


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the accumulation dtype: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def logits_of(hidden: torch.Tensor, head: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Compute out = hidden @ head.T; (tokens, H), (V, H) -> (tokens, V) in float32 or float64."""
    if takes_low_precision(head, out.dtype):
        return torch.mm(hidden.to(head.dtype), head.T, out_dtype=out.dtype, out=out)
    hidden = hidden.to(out.dtype)
    fast = _goes_to_onednn(hidden, head, out.dtype)
    if head.dtype == out.dtype and not fast:
        return torch.mm(hidden, head.T, out=out)
    for part in _parts(len(head)):
        rows = head[part].to(out.dtype)
        if fast:
            out[:, part] = _linear(hidden, rows)
        else:
            torch.mm(hidden, rows.T, out=out[:, part])
    return out


def add_logits_of(hidden: torch.Tensor, head: torch.Tensor, out: torch.Tensor, factor: float) -> None:
    """Add factor * hidden @ head.T to out; shapes and dtypes as in `logits_of`."""
    if takes_low_precision(head, out.dtype):
        torch.addmm(out, hidden.to(head.dtype), head.T, out_dtype=out.dtype, alpha=factor, out=out)
        return
    hidden = hidden.to(out.dtype)
    fast = _goes_to_onednn(hidden, head, out.dtype)
    for part in _parts(len(head)):
        rows = head[part].to(out.dtype)
        if fast:
            out[:, part].add_(_linear(hidden, rows), alpha=factor)
        else:
            out[:, part].addmm_(hidden, rows.T, alpha=factor)


def operand(gradient: torch.Tensor, head: torch.Tensor, spare: torch.Tensor | None = None) -> torch.Tensor:
    """Convert a gradient to the operand dtype of the head's products; (tokens, V).

    On CUDA a gradient for a low-precision head is rounded once for both products, into the memory of `spare` if given:
    a block of the same shape and dtype whose content is no longer needed. Elsewhere the gradient is returned as is.
    """
    if not takes_low_precision(head, gradient.dtype):
        return gradient
    return gradient.to(head.dtype) if spare is None else reinterpret_rows(spare, head.dtype).copy_(gradient)


def hidden_gradient(gradient: torch.Tensor, head: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Compute gradient @ head; (tokens, V) from `operand`, (V, H) -> (tokens, H) in float32 or float64."""
    if gradient.dtype != dtype:
        return torch.mm(gradient, head, out_dtype=dtype)
    if head.dtype == dtype:
        return _linear(gradient, head.T) if _goes_to_onednn(gradient, head, dtype) else torch.mm(gradient, head)
    result = gradient.new_zeros(len(gradient), head.shape[1])
    for part in _parts(len(head)):
        result.addmm_(gradient[:, part], head[part].to(dtype))
    return result


def add_head_gradient(
    total: torch.Tensor, gradient: torch.Tensor, hidden: torch.Tensor, *, first: bool = False
) -> None:
    """Add gradient.T @ hidden to total, in one product.

    Args:
        total: (V, H), float32 or float64.
        gradient: (tokens, V) from `operand`.
        hidden: (tokens, H).
        first: overwrite total instead; it may be uninitialised, which saves zeroing a large head.
    """
    beta = 0 if first else 1
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, hidden, beta=beta)
    else:
        hidden = hidden.to(gradient.dtype)
        torch.addmm(total, gradient.T, hidden, out_dtype=total.dtype, beta=beta, out=total)


def takes_low_precision(head: torch.Tensor, dtype: torch.dtype) -> bool:
    """Tell whether this device multiplies operands of the head's dtype into the wider dtype."""
    return head.is_cuda and head.dtype != dtype


def _goes_to_onednn(a: torch.Tensor, head: torch.Tensor, dtype: torch.dtype) -> bool:
    return (
        dtype == torch.float32
        and a.device.type == "cpu"
        and len(a) * head.numel() >= _ONEDNN_FROM
        and _onednn_is_faster()
    )


@cache
def _onednn_is_faster() -> bool:
    """Tell whether this is an AMD CPU and torch has oneDNN's product. Other CPUs were not measured: False."""
    try:
        maker = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return maker and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _linear(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute a @ b.T with oneDNN, in float32."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def _parts(size: int) -> list[slice]:
    return [slice(begin, min(begin + _BLOCK, size)) for begin in range(0, size, _BLOCK)]
