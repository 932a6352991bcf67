"""Give processes a directory for temporary files that ends with them.

verl leaves a lock there for each checkpoint, vLLM sockets and the files of its process groups, wandb two directories a
process.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verl_s2d.errors import UserError

LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path, at most."""
_BELOW = "/s2d-01234567t/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray makes below the directory that `directory_for_sockets` locates."""


def directory_for_sockets() -> Path:
    """Locate the system's directory for temporary files; /tmp if paths of Ray's sockets would be too long there.

    A batch system's TMPDIR, such as /local/scratch/slurm-12345678, is.

    Raises:
        UserError: it would be too long there, and /tmp cannot be written.
    """
    chosen = tempfile.gettempdir()
    if len(os.fsencode(chosen + _BELOW)) <= LONGEST_SOCKET:
        return Path(chosen)
    if not os.access("/tmp", os.W_OK | os.X_OK):
        raise UserError(
            f"Paths of Ray's sockets may have {LONGEST_SOCKET} bytes; TMPDIR is too long, and /tmp cannot be written.",
            key="TMPDIR",
            value=chosen,
            remedy=f"Set it to a directory whose path has at most {LONGEST_SOCKET - len(_BELOW)} characters.",
        )
    return Path("/tmp")


@contextmanager
def temporary_files_of(run_id: str) -> Iterator[dict[str, str]]:
    """Make the directory of a run's processes and yield the variables that name it to them; remove it at the end.

    What an earlier process of the run left there, because it was killed, is removed first.

    Raises:
        OSError: the directory cannot be made.
    """
    directory = directory_for_sockets() / f"s2d-{run_id[:8]}t"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        yield temporary_files_in(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def new_directory() -> tempfile.TemporaryDirectory:
    """Make a directory for one process; it ends with the returned object, also while the process writes."""
    return tempfile.TemporaryDirectory(prefix="s2d-", dir=directory_for_sockets(), ignore_cleanup_errors=True)


def temporary_files_in(directory: Path | str) -> dict[str, str]:
    """Return the variables of a process whose temporary files belong into a directory."""
    found = {"TMPDIR": str(directory), "TORCHINDUCTOR_CACHE_DIR": compile_cache()}
    if os.environ.get("RAY_ADDRESS"):
        # Ray looks for a user's cluster, `auto`, in the directory that it would make itself.
        found["RAY_TMPDIR"] = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return found


def compile_cache() -> str:
    """Locate what torch has compiled, where torch looks by itself: it serves later runs, too. Does not import torch."""
    if chosen := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return chosen
    try:
        user = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):  # a container's user without a name
        user = f"uid_{os.getuid()}"
    return os.path.join(tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user))
