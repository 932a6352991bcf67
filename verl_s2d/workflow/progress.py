"""Show the progress of a build: a progress bar on a terminal, plain lines with times elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

from verl_s2d import redaction
from verl_s2d.workflow.graph import Node

DONE, FAILED, INTERRUPTED = "done", "FAILED", "interrupted"


class Progress(Protocol):
    """A receiver of events, from several threads where stages run side by side."""

    def note(self, text: str) -> None:
        """Show a line of text."""

    def stage_started(self, node: Node, index: int, count: int, total_steps: int | None, attempt: int) -> None:
        """Show the start of a stage, the index-th (from 1) of `count` missing ones."""

    def stage_step(self, node: Node, step: int) -> None:
        """Show that a running stage has logged this step."""

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        """Show the end of a running stage: DONE, FAILED or INTERRUPTED."""


class PlainProgress:
    """Print lines with a time; steps at most every `interval` seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 30.0):
        self._stream, self._interval = stream or sys.stderr, interval
        self._said: dict[str, float] = {}
        self._totals: dict[str, int | None] = {}

    def note(self, text: str) -> None:
        # One write: lines of two threads stay whole.
        self._stream.write(f"{time.strftime('%H:%M:%S')} {redaction.current().text(text)}\n")
        self._stream.flush()

    def stage_started(self, node: Node, index: int, count: int, total_steps: int | None, attempt: int) -> None:
        self._totals[node.digest], self._said[node.digest] = total_steps, time.monotonic()
        self.note(f"[{index}/{count}] {node.name} ({node.label}{f', attempt {attempt}' if attempt > 1 else ''})")

    def stage_step(self, node: Node, step: int) -> None:
        if time.monotonic() - self._said[node.digest] >= self._interval:
            self._said[node.digest] = time.monotonic()
            total = self._totals[node.digest]
            self.note(f"    {node.name}: step {step}{f'/{total}' if total else ''}")

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        self.note(f"    {node.name} {outcome} after {duration(seconds)}")


class BarProgress:
    """Show a bar of rich for each running stage."""

    def __init__(self) -> None:
        from rich import progress as bars
        from rich.console import Console

        columns = [bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn()]
        columns += [bars.TextColumn("{task.fields[steps]}"), bars.TimeElapsedColumn()]
        self._bars = bars.Progress(*columns, console=Console(stderr=True), transient=True)
        self._tasks: dict[str, Any] = {}

    def note(self, text: str) -> None:
        self._bars.console.print(redaction.current().text(text), markup=False, highlight=False)

    def stage_started(self, node: Node, index: int, count: int, total_steps: int | None, attempt: int) -> None:
        again = f" (attempt {attempt})" if attempt > 1 else ""
        title = f"[{index}/{count}] {node.name}{again}".replace("[", "\\[")
        self._tasks[node.digest] = self._bars.add_task(title, total=total_steps, steps="")
        self._bars.start()

    def stage_step(self, node: Node, step: int) -> None:
        task = self._tasks[node.digest]
        total = self._bars.tasks[self._bars.task_ids.index(task)].total
        self._bars.update(task, completed=step, steps=f"{step}/{total:.0f}" if total else f"step {step}")

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        if (task := self._tasks.pop(node.digest, None)) is not None:
            self._bars.remove_task(task)
        if not self._tasks:
            self._bars.stop()
        self.note(f"{'✓' if outcome == DONE else '✗'} {node.name} {outcome} after {duration(seconds)}")


def choose_progress() -> Progress:
    """Choose bars when standard error is a terminal, otherwise lines."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()


def duration(seconds: float) -> str:
    """Format a duration: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
