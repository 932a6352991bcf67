"""Manage the directory of a run: its record, and the lock that excludes a second `run`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from verl_s2d import redaction
from verl_s2d.data.files import write_json
from verl_s2d.errors import UserError
from verl_s2d.recipe.schema import Origin

_RECORD = "run.json"
_LOCK = "lock"
_HARMLESS = re.compile(rf"{_LOCK}|\.{re.escape(_RECORD)}\..*tmp|\.gitkeep|\.gitignore|lost\+found")
_STAGE = re.compile(r"[a-z_]+-[0-9a-f]{12}|\..*")


def check_run_directory(run_dir: Path, recipe_name: str) -> None:
    """Raise UserError unless the directory is new, empty, or was made for a recipe of this name.

    Other settings of the same recipe are allowed: stages are addressed by digest.
    """
    if run_dir.is_file():
        raise UserError(
            "The run directory is a file.", key="--run-dir", value=str(run_dir), remedy="Choose another path."
        )
    record = read_record(run_dir)
    if record is not None and record["recipe"] != recipe_name:
        raise UserError(
            f"The run directory was made for another recipe, {record['recipe']}.",
            key="--run-dir",
            value=str(run_dir),
            remedy=f"Choose another directory for {recipe_name}.",
        )
    if (
        record is None
        and run_dir.is_dir()
        and not _has_stages(run_dir)
        and not all(map(_HARMLESS.fullmatch, os.listdir(run_dir)))
    ):
        raise UserError(
            "The run directory is not empty and was not made by verl-s2d.",
            key="--run-dir",
            value=str(run_dir),
            remedy="Choose a new or an empty directory.",
        )


def _has_stages(run_dir: Path) -> bool:
    """Report whether this is a run whose record was lost: its `stages` holds only directories of stages."""
    stages = run_dir / "stages"
    return stages.is_dir() and all(map(_STAGE.fullmatch, os.listdir(stages)))


def read_record(run_dir: Path) -> dict | None:
    """Read {"recipe": name, "id": id of the run, and the entries of `remember`}; None when there is no record."""
    try:
        record = json.loads((run_dir / _RECORD).read_text())
        return record if {"recipe", "id"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def remember(
    run_dir: Path, origin: Origin, rows: Iterable[str], seeds: Iterable[int], facts: Mapping[str, Any]
) -> None:
    """Record the recipe's origin, and add rows and seeds to those that `gc` keeps. Requires the lock.

    `facts`, keywords of the report's `Facts`, are for a report without the recipe.
    """
    record = read_record(run_dir)
    _enter(
        run_dir,
        file=str(origin.path),
        overrides=recorded_overrides(origin.overrides),
        shrink=origin.shrink,
        rows=list(dict.fromkeys([*record.get("rows", ()), *rows])),
        seeds=sorted({*record.get("seeds", ()), *seeds}),
        facts=dict(facts),
    )


def recorded_overrides(overrides: Iterable[str]) -> list[str]:
    """Return overrides as they are recorded, with secrets hidden."""
    return redaction.current().data(list(overrides))


def remember_evaluations(run_dir: Path, labels: Iterable[str]) -> None:
    """Record the stages of an `evaluate`, which no row names. Requires the lock."""
    _enter(run_dir, evaluations=list(dict.fromkeys([*evaluations(run_dir), *labels])))


def evaluations(run_dir: Path) -> list[str]:
    """List the labels of the stages of every `evaluate` in this directory."""
    return (read_record(run_dir) or {}).get("evaluations", [])


def _enter(run_dir: Path, **entry: Any) -> None:
    record = read_record(run_dir)
    if record != (record := record | entry):
        write_json(record, run_dir / _RECORD)


@contextlib.contextmanager
def opened(run_dir: Path, recipe_name: str) -> Iterator[str]:
    """Lock the run directory for this process; yield the id of the run.

    The operating system frees the lock when the process ends, however it ends.

    Raises:
        UserError: the directory belongs to something else, or another `run` is working in it.
    """
    check_run_directory(run_dir, recipe_name)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        stream = (run_dir / _LOCK).open("a+")
    except OSError as error:
        raise UserError(
            f"The run directory cannot be written: {error.strerror or error}.",
            key="--run-dir",
            value=str(run_dir),
            remedy="Choose another.",
        ) from error
    with stream:
        if not _lock(stream):
            stream.seek(0)
            holder = stream.read().strip()
            raise UserError(
                f"Another run is working in this directory{f' (process {holder})' if holder else ''}.",
                key="--run-dir",
                value=str(run_dir),
                remedy="Wait for it, stop it, or choose another directory.",
            )
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        run_id = _identify(run_dir, recipe_name)
        (run_dir / "stages").mkdir(exist_ok=True)
        yield run_id


def _identify(run_dir: Path, recipe_name: str) -> str:
    """Return the recorded id, or a new one in a directory without a record and in a copy of another run's directory.

    A run ends processes with its id that a killed one has left. With the same id in a copy, two runs that work at the
    same time would end each other's.
    """
    record = read_record(run_dir) or {"recipe": recipe_name, "id": uuid.uuid4().hex}
    status = run_dir.stat()
    directory = f"{status.st_dev}:{status.st_ino}"
    if record.get("directory", directory) != directory:
        record["id"] = uuid.uuid4().hex
    if record.get("directory") != directory:
        write_json(record | {"directory": directory}, run_dir / _RECORD)
    return record["id"]


def is_locked(run_dir: Path) -> bool:
    """Report whether a `run` is working in the directory now."""
    try:
        with (run_dir / _LOCK).open("r+") as stream:
            return not _lock(stream)
    except OSError:
        return False


def _lock(stream) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
