"""Find the error that explains a failure: a worker's traceback shows the cause, the driver's log only consequences."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

_READ_BYTES = 2**20
_KEPT_BYTES = 4 * 2**20
_TRAILING_LINES = 4
"""Lines to show after the exception's name: CUDA's messages have several."""
_BEGINS = re.compile(
    r"Traceback \(most recent call last\)|Fatal Python error: |\*\*\* SIG[A-Z]+ "
    # Printed by Ray on behalf of a process that has died.
    r"|node name: \S+ has been marked dead|A worker died or was killed while executing a task"
)
_FORWARDED = re.compile(r"^(?:\x1b\[\d+m)?\((?:(?P<actor>[^()=]+?) )?pid=(?P<pid>\d+)[^)]*\)(?:\x1b\[0m)? ?")
"""Prefix of the lines that Ray forwards from a worker to its driver."""
_ACTOR = re.compile(r"^:actor_name:(.+)$", re.MULTILINE)
_WORKER_LOG = re.compile(r"worker-[0-9a-f]+-[0-9a-f]+-(\d+)\.(?:out|err)")


@dataclass(frozen=True)
class Evidence:
    """The last error in a log.

    Attributes:
        actor: the process that logged it (`WorkerDict, process 4711`), None for the driver.
        lines: the last lines of the traceback.
    """

    log: Path
    actor: str | None
    lines: list[str]


def sizes(logs: Iterable[Path]) -> dict[Path, int]:
    """Record the size of each log in bytes, so that a later search can begin there."""
    found = {}
    for log in logs:
        try:
            found[log] = log.stat().st_size
        except OSError:
            continue
    return found


def worker_logs(directory: Path | None) -> list[Path]:
    """List the logs of Ray's workers by modification time: the worker that failed first stopped writing first."""
    if directory is None:
        return []
    changed = []
    for log in directory.glob("worker-*"):
        try:
            changed.append((log.stat().st_mtime, log))
        except OSError:
            continue
    return [log for _, log in sorted(changed)]


def find_error(
    logs: Iterable[Path], after: Mapping[Path, int], *, count: int = 15, only_forwarded: bool = False
) -> Evidence | None:
    """Find the last error of the first log that has one.

    Args:
        after: log -> byte offset at which the search begins; 0 for a log without an entry.
        count: lines to return.
        only_forwarded: consider only lines that Ray has forwarded from workers to the driver's log.
    """
    for log in logs:
        text = _read(log, after.get(log, 0))
        found = _last_error(text.splitlines(), count, only_forwarded) if text else None
        if found is not None:
            actor, lines = found
            return Evidence(log, actor or _actor_of(log), lines)
    return None


def keep(evidence: Evidence, directory: Path, attempt: int) -> Evidence:
    """Copy the end of the log into the stage's directory: Ray's logs are deleted with its head."""
    kept = directory / "worker-logs" / f"attempt-{attempt}-{evidence.log.name}"
    try:
        kept.parent.mkdir(exist_ok=True)
        with evidence.log.open("rb") as source, kept.open("wb") as copy:
            source.seek(max(0, evidence.log.stat().st_size - _KEPT_BYTES))
            shutil.copyfileobj(source, copy)
    except OSError:
        return evidence
    return replace(evidence, log=kept)


def _last_error(lines: list[str], count: int, only_forwarded: bool) -> tuple[str | None, list[str]] | None:
    split = [(_FORWARDED.match(line), line.rsplit("\r", 1)[-1]) for line in lines]
    begins = [i for i, (who, line) in enumerate(split) if _BEGINS.search(line) and (who or not only_forwarded)]
    if not begins:
        return None
    prefix = split[begins[-1]][0]
    block = [
        _FORWARDED.sub("", line).rstrip()
        for who, line in split[begins[-1] :]
        if (who and who["pid"]) == (prefix and prefix["pid"])
    ]
    end = next((i for i in range(1, len(block)) if not _indented(block, i) and not _indented(block, i + 1)), len(block))
    shown = [line[:400] for line in block[: end + 1 + _TRAILING_LINES] if line]
    actor = f"{prefix['actor'] or 'task'}, process {prefix['pid']}" if prefix else None
    return actor, shown[-count:]


def _indented(lines: list[str], index: int) -> bool:
    return index < len(lines) and lines[index].startswith((" ", "\t"))


def _actor_of(log: Path) -> str | None:
    name = _WORKER_LOG.fullmatch(log.name)
    if name is None:
        return None
    # Ray writes the actor's name at the top of each of the two files once the actor is created.
    for path in (log, log.with_suffix(".err"), log.with_suffix(".out")):
        try:
            with path.open(errors="replace") as stream:
                if found := _ACTOR.search(stream.read(4096)):
                    return f"{found[1]}, process {name[1]}"
        except OSError:
            continue
    return f"a worker of Ray, process {name[1]}"


def _read(log: Path, begin: int) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(begin, stream.tell() - _READ_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
