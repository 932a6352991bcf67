"""Hand out stages to the lanes of a run, in build order, each once its inputs are built."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush

from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node


class Schedule:
    """Stages that lanes build, each in a thread of its own.

    Args:
        stages: position in the whole run -> stage, in build order.
        failed: digests of stages that failed before; grows.
        keep_going: after a failure, hand out stages that do not depend on the failed one.
    """

    def __init__(self, stages: Mapping[int, Node], failed: set[str], keep_going: bool, note: Callable[[str], None]):
        self._waiting = dict(stages)
        missing = {node.digest for node in stages.values()}
        self._lacking = {at: missing & _inputs(node) for at, node in stages.items()}
        self._users: dict[str, list[int]] = {}
        for at, lacking in self._lacking.items():
            for digest in lacking:
                self._users.setdefault(digest, []).append(at)
        self._ready = [at for at, lacking in self._lacking.items() if not lacking]
        heapify(self._ready)
        self._failed, self._keep_going, self._note = failed, keep_going, note
        self._changed = threading.Condition()
        self.failures: list[StageFailed] = []
        self.error: BaseException | None = None
        """Error of a lane that is no failure of a stage."""
        for at, node in stages.items():
            if failed & _inputs(node):
                self._leave_out(at)

    def take(self) -> tuple[int, Node] | None:
        """Wait for a stage whose inputs are built; return position and stage, or None when all are handed out."""
        with self._changed:
            while True:
                while self._ready:
                    at = heappop(self._ready)
                    if at in self._waiting:
                        return at, self._waiting.pop(at)
                if not self._waiting:
                    return None
                # no limit: a stage that others wait for has the limits of its watchdog
                self._changed.wait(1)

    def built(self, node: Node) -> None:
        """Enter a stage that is built."""
        with self._changed:
            for at in self._users.get(node.digest, ()):
                self._lacking[at].discard(node.digest)
                if not self._lacking[at]:
                    heappush(self._ready, at)
            self._changed.notify_all()

    def failed(self, node: Node, failure: StageFailed) -> None:
        """Enter a failed stage, and leave out what depends on it."""
        with self._changed:
            self.failures.append(failure)
            self._failed.add(node.digest)
            self._note(str(failure))
            if not self._keep_going:
                self._waiting.clear()
            for at in self._users.get(node.digest, ()):
                self._leave_out(at)
            self._changed.notify_all()

    def end(self, error: BaseException) -> None:
        """Hand out nothing more, because a lane has ended with an error."""
        with self._changed:
            self.error = self.error or error
            self._waiting.clear()
            self._changed.notify_all()

    def _leave_out(self, at: int) -> None:
        pending = [at]
        while pending:
            node = self._waiting.pop(pending.pop(), None)
            if node is not None:
                self._failed.add(node.digest)
                self._note(f"{node.name} left out: it needs a stage that failed")
                pending += self._users.get(node.digest, ())


def preparing(stages: Iterable[Node]) -> set[str]:
    """Return the digests of the stages that make data and models before anything is trained."""
    missing, found = list(stages), set[str]()
    others = {node.digest for node in missing}
    for node in missing:
        if node.stage.prepares and others.isdisjoint(_inputs(node)):
            found.add(node.digest)
            others.discard(node.digest)
    return found


def _inputs(node: Node) -> set[str]:
    return {source.digest for source in node.inputs.values()}
