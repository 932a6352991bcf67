"""Show the log of a stage, and follow it while a run is working."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.validation import suggestion
from verl_s2d.workflow import attempts
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.run_directory import is_locked

_PAUSE = 0.5
_CHUNK = 2**16


def show_log(plan: Plan, stage: str | None, *, lines: int, follow: bool, write: Callable[[str], object]) -> None:
    """Write the end of a stage's log; with `follow` also what is added, until no run works in the directory.

    Args:
        stage: name of a stage of the rows; None for the one that is running, or ran last. Following it goes on with
            the next stage that starts.
        lines: how many of the last lines are written; 0 for all.

    Raises:
        UserError: no stage has this name, or it has no log yet.
    """
    name, log = _chosen(plan, stage)
    write(f"==> {name}: {log}\n")
    place = _tail(log, lines, write)
    while follow:  # no limit: it ends with the run, or by Ctrl-C
        working = is_locked(plan.context.run_dir)
        place = _copy(log, place, write)
        if not working:
            return
        if stage is None and (newest := _chosen(plan, None)) != (name, log):
            name, log, place = *newest, 0
            write(f"==> {name}: {log}\n")
        time.sleep(_PAUSE)


def _chosen(plan: Plan, stage: str | None) -> tuple[str, Path]:
    logs = {node.name: plan.context.directory(node) / "log.txt" for node in plan.order}
    if stage is not None and stage not in logs:
        raise UserError("No stage has this name.", key="stage", value=stage, remedy=suggestion(stage, logs))
    found = [(name, log) for name, log in logs.items() if stage in (None, name) and log.is_file()]
    if not found:
        raise UserError(
            "There is no log yet.",
            key="stage" if stage else "run",
            value=stage or str(plan.context.run_dir),
            remedy="`verl-s2d status` shows which stages have started.",
        )
    return max(found, key=lambda entry: (attempts.is_open(entry[1].parent), entry[1].stat().st_mtime))


def _tail(log: Path, lines: int, write: Callable[[str], object]) -> int:
    """Write the last lines; returns the place behind them."""
    with log.open("rb") as stream:
        end = start = stream.seek(0, 2)
        text = b""
        while lines and start and text.count(b"\n") <= lines:
            start = max(0, start - _CHUNK)
            stream.seek(start)
            text = stream.read(end - start)
        if lines:
            write("".join(text.decode(errors="replace").splitlines(keepends=True)[-lines:]))
    return end if lines else _copy(log, 0, write)


def _copy(log: Path, place: int, write: Callable[[str], object]) -> int:
    """Write what the log has behind a place; returns the new place. A log that became shorter is written anew."""
    with log.open("rb") as stream:
        if stream.seek(0, 2) < place:
            place = 0
        stream.seek(place)
        while text := stream.read(_CHUNK):
            write(text.decode(errors="replace"))
        return stream.tell()
