"""Allocate large tensors that are written before they are read: huge pages on a CPU, aligned rows on CUDA."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch

_HUGE_PAGE = 1 << 21
_MADV_HUGEPAGE = 14  # <linux/mman.h>

# cuBLAS takes its fast kernels only where rows begin at multiples of 16 bytes; 64 elements are 128 bytes of bf16.
_CUDA_ROW = 64


def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate an uninitialised tensor.

    A fresh block of CPU memory is mapped and zeroed at its first write, one page at a time. With pages of 4 KiB this
    took 28 ms for 64 MiB, with huge pages 5 ms, and a write to memory mapped before 2 ms. Linux grants huge pages on
    request unless they are disabled; other systems ignore the request.
    """
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if tensor.device.type == "cpu":
        _advise(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    return tensor


def empty_rows(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate an uninitialised tensor whose rows on CUDA begin at multiples of 64 elements: a view of a wider one."""
    columns = shape[-1]
    step = _CUDA_ROW if torch.device(device).type == "cuda" else 1
    return empty(*shape[:-1], -(-columns // step) * step, dtype=dtype, device=device)[..., :columns]


def reinterpret_rows(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """View the memory of (rows, columns) of `empty_rows` as a narrower dtype, same shape, rows where they began."""
    return block.view(dtype)[:, : block.shape[1]]


def _advise(address: int, size: int) -> None:
    """Request huge pages for the part of the range that they cover entirely."""
    begin = -(-address // _HUGE_PAGE) * _HUGE_PAGE
    length = (address + size) // _HUGE_PAGE * _HUGE_PAGE - begin
    if length > 0 and (madvise := _madvise()) is not None:
        madvise(begin, length, _MADV_HUGEPAGE)


@cache
def _madvise():
    """Return the C library's madvise; None on systems other than Linux."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
