"""Measure time and memory of work on a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def milliseconds(work: Callable[[], object], device: str, *, rounds: int = 10) -> float:
    """Measure the median wall time of a call in ms, after a warm-up, synchronising the device around each call."""
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
    """Wait until the device has finished all submitted work."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_bytes(work: Callable[[], object], device: str) -> int | None:
    """Measure the peak bytes that a call allocates; None on a CPU, which has no such counter."""
    if device == "cpu":
        work()
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    wait(device)
    return torch.cuda.max_memory_allocated() - before
