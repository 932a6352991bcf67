"""Report comparisons that ended without a verdict: they score 0, and must not do so silently."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)
_thread = threading.local()


def report_unsettled(problem: str) -> None:
    """Log a comparison without a verdict, and add it to the list of the enclosing `collect_unsettled`."""
    _log.warning("verifier: %s; the response scores 0 and is counted as unsettled", problem)
    collected = getattr(_thread, "collected", None)
    if collected is not None:
        collected.append(problem)


@contextmanager
def collect_unsettled() -> Iterator[list[str]]:
    """Collect what this thread reports inside the block."""
    outer, _thread.collected = getattr(_thread, "collected", None), []
    try:
        yield _thread.collected
    finally:
        _thread.collected = outer
