"""Remember what the same question was answered within a process: of judges, and of programs in the sandbox."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_MOST = 65_536


class Remembered(Generic[T]):
    """Answers by the digest of their question, the oldest forgotten first. Thread-safe."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._answers: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, question: Any, find: Callable[[], T]) -> T:
        """Return the answer to a question that JSON can write; `find` is called for one that is new.

        What `find` raises is not remembered. Threads that ask the same at once both call it.
        """
        key = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        with self._lock:
            if key in self._answers:
                return self._answers[key]
        found = find()
        with self._lock:
            self._answers[key] = found
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)
        return found
