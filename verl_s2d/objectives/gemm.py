"""Matrix products whose sums are kept in float32 when the inputs are bf16 or fp16.

Logits rounded to bf16 cost two digits of the gradient. On CUDA the tensor cores take low-precision operands and write
float32; on a CPU operands are widened in blocks, so that no widened copy of a whole head exists.
"""

from __future__ import annotations

import torch

_BLOCK = 8192


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def logits_of(hidden: torch.Tensor, head: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out = hidden @ head.T; (tokens, H), (V, H) -> (tokens, V) in float32 or float64."""
    if head.dtype == out.dtype:
        return torch.mm(hidden.to(out.dtype), head.T, out=out)
    if head.is_cuda:
        return torch.mm(hidden.to(head.dtype), head.T, out_dtype=out.dtype, out=out)
    hidden = hidden.to(out.dtype)
    for part in _parts(len(head)):
        torch.mm(hidden, head[part].to(out.dtype).T, out=out[:, part])
    return out


def hidden_gradient(gradient: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """gradient @ head; (tokens, V), (V, H) -> (tokens, H) in the gradient's dtype."""
    if head.dtype == gradient.dtype:
        return torch.mm(gradient, head)
    if head.is_cuda:
        return torch.mm(gradient.to(head.dtype), head, out_dtype=gradient.dtype)
    result = gradient.new_zeros(len(gradient), head.shape[1])
    for part in _parts(len(head)):
        result.addmm_(gradient[:, part], head[part].to(gradient.dtype))
    return result


def add_head_gradient(
    total: torch.Tensor, gradient: torch.Tensor, hidden: torch.Tensor, operands: torch.dtype, *, first: bool = False
) -> None:
    """total += gradient.T @ hidden; (V, H), (tokens, V), (tokens, H), all in float32 or float64.

    On CUDA the product is taken of operands in the given low-precision dtype. With `first` what is in total does not
    count: it need not be zeros, which for a large head are another pass over memory.
    """
    beta = 0 if first else 1
    if not total.is_cuda or operands == total.dtype:
        total.addmm_(gradient.T, hidden, beta=beta)
        return
    hidden = hidden.to(operands)
    for part in _parts(len(total)):
        product = torch.mm(gradient[:, part].T.to(operands), hidden, out_dtype=total.dtype)
        total[part] = product if first else total[part].add_(product)


def _parts(size: int) -> list[slice]:
    return [slice(begin, min(begin + _BLOCK, size)) for begin in range(0, size, _BLOCK)]
