"""Time and memory of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def milliseconds(work: Callable[[], object], device: str, *, rounds: int = 10) -> float:
    """Median wall time of a call after one that warms up, waiting for the device before and after each."""
    work()
    times = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[len(times) // 2]


def wait(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_bytes(work: Callable[[], object], device: str) -> int | None:
    """Bytes that a call adds to what is allocated, at most; None on a CPU, where nobody counts."""
    if device == "cpu":
        work()
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    wait(device)
    return torch.cuda.max_memory_allocated() - before
