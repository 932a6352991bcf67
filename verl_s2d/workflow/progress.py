"""Show the progress of a build: a progress bar on a terminal, plain lines with times elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from verl_s2d import redaction
from verl_s2d.workflow.graph import Node

DONE, FAILED, INTERRUPTED = "done", "FAILED", "interrupted"


class Progress(Protocol):
    """A receiver of events; one stage runs at a time."""

    def note(self, text: str) -> None:
        """Show a line of text."""

    def stage_started(self, node: Node, index: int, count: int, total_steps: int | None, attempt: int) -> None:
        """Show the start of a stage, the index-th (from 1) of `count` missing ones."""

    def stage_step(self, step: int) -> None:
        """Show that the running stage has logged this step."""

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        """Show the end of the running stage: DONE, FAILED or INTERRUPTED."""


class PlainProgress:
    """Print lines with a time; steps at most every `interval` seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 30.0):
        self._stream, self._interval = stream or sys.stderr, interval
        self._said, self._node, self._total = 0.0, None, None

    def note(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {redaction.current().text(text)}", file=self._stream, flush=True)

    def stage_started(self, node: Node, index: int, count: int, total_steps: int | None, attempt: int) -> None:
        self._node, self._total, self._said = node, total_steps, time.monotonic()
        self.note(f"[{index}/{count}] {node.name} ({node.label}{f', attempt {attempt}' if attempt > 1 else ''})")

    def stage_step(self, step: int) -> None:
        if time.monotonic() - self._said >= self._interval:
            self._said = time.monotonic()
            self.note(f"    {self._node.name}: step {step}{f'/{self._total}' if self._total else ''}")

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        self.note(f"    {node.name} {outcome} after {duration(seconds)}")


class BarProgress:
    """Show a bar of rich for each stage."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar, self._task = None, None

    def note(self, text: str) -> None:
        console = self._bar.console if self._bar else self._console
        console.print(redaction.current().text(text), markup=False, highlight=False)

    def stage_started(self, node: Node, index: int, count: int, total_steps: int | None, attempt: int) -> None:
        from rich import progress as bars

        columns = [bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn()]
        columns += [bars.MofNCompleteColumn()] if total_steps else []
        self._bar = bars.Progress(*columns, bars.TimeElapsedColumn(), console=self._console, transient=True)
        again = f" (attempt {attempt})" if attempt > 1 else ""
        self._task = self._bar.add_task(f"[{index}/{count}] {node.name}{again}".replace("[", "\\["), total=total_steps)
        self._bar.start()

    def stage_step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
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
