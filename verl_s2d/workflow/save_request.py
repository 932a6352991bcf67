"""Ask a training stage to save and stop, by a file beside its checkpoints.

A file, because the trainer may be an actor on another machine, and all machines share the run directory's storage.
"""

from __future__ import annotations

from pathlib import Path

_FILE = "save_and_stop"


def ask(checkpoints: Path) -> None:
    """Ask the trainer that writes into this directory to save at the end of its current step and to stop."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / _FILE).touch()


def asked(checkpoints: str | Path) -> bool:
    """Report whether a request exists."""
    return (Path(checkpoints) / _FILE).exists()


def withdraw(checkpoints: Path) -> None:
    """Delete the request."""
    (checkpoints / _FILE).unlink(missing_ok=True)
