"""Show the progress of a build: a progress bar on a terminal, plain lines with times elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
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

    def stage_step(self, node: Node, step: int | None, figures: Sequence[str] = ()) -> None:
        """Show the newest step that a running stage has logged, None before the first, with its figures."""

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        """Show the end of a running stage: DONE, FAILED or INTERRUPTED."""


class Pace:
    """Estimates the phase of a running stage, or how long the rest of its steps will take at the pace so far.

    Args:
        total: steps of the stage; None where it has none.
        clock: returns seconds.
    """

    def __init__(self, node: Node, total: int | None, clock: Callable[[], float] = time.monotonic):
        self._trains, self._total, self._clock = node.stage.trains, total, clock
        # The time until the first step includes the start, so the pace is counted from there.
        self._first: tuple[int, float] | None = None
        self._newest: tuple[int, float] | None = None

    def look(self, step: int | None) -> str:
        """Name the phase, or the time left; empty where neither is known."""
        if step is None:
            return "starting models and engines" if self._trains else ""
        if self._newest is None or step != self._newest[0]:
            self._newest = (step, self._clock())
            self._first = self._first or self._newest
        if self._total is not None and step >= self._total:
            return "saving the model"
        (begun, then), (_, now) = self._first or self._newest, self._newest
        if self._total is None or step <= begun:
            return ""
        return f"{duration((self._total - step) * (now - then) / (step - begun))} left"


class PlainProgress:
    """Print lines with a time; of a running stage at most one every `interval` seconds."""

    def __init__(self, stream: TextIO | None = None, interval: float = 30.0):
        self._stream, self._interval = stream or sys.stderr, interval
        self._said: dict[str, float] = {}
        self._totals: dict[str, int | None] = {}
        self._paces: dict[str, Pace] = {}
        self._shown: dict[str, str] = {}

    def note(self, text: str) -> None:
        # One write: lines of two threads stay whole.
        self._stream.write(f"{time.strftime('%H:%M:%S')} {redaction.current().text(text)}\n")
        self._stream.flush()

    def stage_started(self, node: Node, index: int, count: int, total_steps: int | None, attempt: int) -> None:
        self._totals[node.digest], self._said[node.digest] = total_steps, time.monotonic()
        self._paces[node.digest], self._shown[node.digest] = Pace(node, total_steps), ""
        self.note(f"[{index}/{count}] {node.name} ({node.label}{f', attempt {attempt}' if attempt > 1 else ''})")

    def stage_step(self, node: Node, step: int | None, figures: Sequence[str] = ()) -> None:
        left = self._paces[node.digest].look(step)
        if time.monotonic() - self._said[node.digest] < self._interval:
            return
        text = ", ".join(filter(None, [_steps(step, self._totals[node.digest]), *figures, left]))
        if text != self._shown[node.digest]:
            self._said[node.digest], self._shown[node.digest] = time.monotonic(), text
            self.note(f"    {node.name}: {text}")

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        self.note(f"    {node.name} {outcome} after {duration(seconds)}")


class BarProgress:
    """Show a bar of rich for each running stage, its figures below."""

    def __init__(self) -> None:
        from rich import progress as bars
        from rich.console import Console, RenderableType
        from rich.text import Text

        class Bars(bars.Progress):
            # In a column of the bar's own table the figures would leave it no room on 80 columns.
            def get_renderables(self) -> Iterator[RenderableType]:
                for task in self.tasks:
                    yield self.make_tasks_table([task])
                    if task.fields["below"]:
                        yield Text(f"    {task.fields['below']}")

        columns = [bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn()]
        columns += [bars.TextColumn("{task.fields[steps]}"), bars.TimeElapsedColumn()]
        self._bars = Bars(*columns, console=Console(stderr=True), transient=True)
        self._tasks: dict[str, Any] = {}
        self._paces: dict[str, Pace] = {}

    def note(self, text: str) -> None:
        self._bars.console.print(redaction.current().text(text), markup=False, highlight=False)

    def stage_started(self, node: Node, index: int, count: int, total_steps: int | None, attempt: int) -> None:
        again = f" (attempt {attempt})" if attempt > 1 else ""
        title = f"[{index}/{count}] {node.name}{again}".replace("[", "\\[")
        self._paces[node.digest] = Pace(node, total_steps)
        self._tasks[node.digest] = self._bars.add_task(title, total=total_steps, steps="", below="")
        self._bars.start()

    def stage_step(self, node: Node, step: int | None, figures: Sequence[str] = ()) -> None:
        identity = self._tasks[node.digest]
        task = self._bars.tasks[self._bars.task_ids.index(identity)]
        below = ", ".join(filter(None, [*figures, self._paces[node.digest].look(step)]))
        steps = _steps(step, task.total and int(task.total)).removeprefix("step ")
        self._bars.update(identity, completed=step, steps=steps, below=below)

    def stage_ended(self, node: Node, seconds: float, outcome: str) -> None:
        if (task := self._tasks.pop(node.digest, None)) is not None:
            self._bars.remove_task(task)
        if not self._tasks:
            self._bars.stop()
        self.note(f"{'✓' if outcome == DONE else '✗'} {node.name} {outcome} after {duration(seconds)}")


def _steps(step: int | None, total: int | None) -> str:
    return "" if step is None else f"step {step}/{total}" if total else f"step {step}"


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
