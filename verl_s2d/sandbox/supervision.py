"""Watch a box from outside, end it at a limit, and collect what its program wrote."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from verl_s2d.sandbox.box import Box, BoxFailed
from verl_s2d.sandbox.process_tree import descendants, usage
from verl_s2d.sandbox.program import WALL_FACTOR, WALL_SECONDS, Ending, Result, RunLimits

_TICK_SECONDS = 0.02
"""Between two looks at what a box uses."""
_STARVED_FACTOR, _STARVED_SECONDS = 100.0, 300.0
"""Outer limit of a run in wall time, at which the machine gave it no processor."""
_DRAIN_SECONDS = 5.0
_READ = 1 << 16


class OwnerGone(Exception):
    """The process that asks for runs has ended."""


class _Watch:
    """The messages and output of one box, as they arrive."""

    def __init__(self, box: Box, limits: RunLimits, owner: int):
        self.box, self.limits, self.owner = box, limits, owner
        self.output = {box.stdout: bytearray(), box.stderr: bytearray()}
        self.unread = b""
        self.status: int | None = None
        self.first: int | None = None
        self.seconds = 0.0
        self.over = False
        """No process of the box is left."""
        self.poll = select.poll()
        for descriptor in (box.stdout, box.stderr, box.messages):
            os.set_blocking(descriptor, False)
            self.poll.register(descriptor, select.POLLIN)
        self.poll.register(owner, 0)

    def look(self, seconds: float) -> None:
        """Wait for output or a message, and read it. Raises BoxFailed or OwnerGone."""
        for descriptor, event in self.poll.poll(seconds * 1000):
            if descriptor == self.owner:
                if event & (select.POLLHUP | select.POLLERR):
                    raise OwnerGone
                continue
            read = os.read(descriptor, _READ)
            if not read:
                self.poll.unregister(descriptor)
                self.over = self.over or descriptor == self.box.messages
            elif descriptor == self.box.messages:
                self._hear(read)
            elif len(self.output[descriptor]) <= self.limits.output_kb << 10:
                self.output[descriptor] += read

    def _hear(self, read: bytes) -> None:
        *lines, self.unread = (self.unread + read).split(b"\n")
        for line in lines:
            kind, text = line[:1], line[1:].decode()
            if kind == b"E":
                raise BoxFailed(text)
            if kind == b"P":
                self.first = int(text)
            else:
                self.status = os.waitstatus_to_exitcode(int(text))

    def too_much_output(self) -> bool:
        return any(len(text) > self.limits.output_kb << 10 for text in self.output.values())

    def text(self, descriptor: int) -> str:
        return bytes(self.output[descriptor][: self.limits.output_kb << 10]).decode("utf-8", "replace")


def supervise(box: Box, limits: RunLimits, owner: int) -> Result:
    """Wait until a box's program has ended or exceeds a limit, and end the box.

    Args:
        owner: descriptor of the pipe on which runs are asked for; when it closes, the run is ended.

    Raises:
        BoxFailed: the box could not be made, or was ended from outside.
        OwnerGone: the owner has ended.
    """
    watch = _Watch(box, limits, owner)
    try:
        ending = _run(watch)
    finally:
        _end(watch)
        box.close()
    return _result(watch, ending)


def _run(watch: _Watch) -> Ending:
    started, due = time.monotonic(), 0.0
    limits = watch.limits
    while not watch.over and watch.status is None:
        watch.look(_TICK_SECONDS)
        if watch.too_much_output():
            return "output"
        now = time.monotonic()
        if now < due:
            continue
        due, used, wall = now + _TICK_SECONDS, usage(watch.box.outer), now - started
        watch.seconds = used.seconds
        if used.memory > limits.memory_mb << 20:
            return "memory"
        if used.seconds > limits.seconds or wall - used.waited > WALL_FACTOR * limits.seconds + WALL_SECONDS:
            return "time"
        if wall > _STARVED_FACTOR * limits.seconds + _STARVED_SECONDS:
            raise BoxFailed("the machine is too busy to run the program")
    return "ended"


def _end(watch: _Watch) -> None:
    """End all processes of a box, and collect the rest of its output."""
    box = watch.box
    if box.directory is not None:
        _end_descendants(box.outer)
    if watch.first is None:
        with contextlib.suppress(BoxFailed, OwnerGone):
            watch.look(0)
    # The outer process ends by itself after the first, so that its end says that the box is empty.
    with contextlib.suppress(ProcessLookupError):
        os.kill(watch.first or box.outer, signal.SIGKILL)
    # no limit: the kernel has been told to end the box's processes, and the outer one ends with them
    _, _, used = os.wait4(box.outer, 0)
    deadline = time.monotonic() + _DRAIN_SECONDS
    with contextlib.suppress(BoxFailed, OwnerGone):
        while time.monotonic() < deadline and watch.poll.poll(0):
            watch.look(0)
    # What the kernel ends with the box is in no parent's account.
    watch.seconds = max(watch.seconds, used.ru_utime + used.ru_stime)


def _end_descendants(outer: int) -> None:
    """End what descends from the first process of a box without isolation, until nothing is left."""
    for _ in range(100):
        left = [pid for pid in list(descendants(outer))[2:] if _alive(pid)]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _result(watch: _Watch, ending: Ending) -> Result:
    status = watch.status
    if ending == "ended":
        if status is None:
            raise BoxFailed("the box was ended from outside")
        if watch.too_much_output():
            ending = "output"
        elif status == -signal.SIGXCPU or (status == -signal.SIGKILL and watch.seconds >= watch.limits.seconds):
            ending = "time"
        elif status == -signal.SIGKILL and watch.box.directory is None:
            # In a box no program can send this signal.
            raise BoxFailed("the program was killed from outside; is there memory left?")
    return Result(
        ending=ending,
        status=status if ending == "ended" else None,
        stdout=watch.text(watch.box.stdout),
        stderr=watch.text(watch.box.stderr),
        seconds=watch.seconds,
    )
