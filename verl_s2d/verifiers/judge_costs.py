"""Count what judges cost: calls that were answered, and tokens of question and answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_thread = threading.local()


def report_judged(tokens: int) -> None:
    """Add an answered call to the list of the enclosing `collect_judged`."""
    collected = getattr(_thread, "collected", None)
    if collected is not None:
        collected.append(tokens)


@contextmanager
def collect_judged() -> Iterator[list[int]]:
    """Collect the tokens of each call of a judge that this thread makes inside the block."""
    outer, _thread.collected = getattr(_thread, "collected", None), []
    try:
        yield _thread.collected
    finally:
        _thread.collected = outer
