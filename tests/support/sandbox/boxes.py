"""A sandbox for tests, and what may be left of its boxes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from verl_s2d.errors import UserError
from verl_s2d.sandbox.process_tree import descendants
from verl_s2d.sandbox.sandbox import Sandbox


def require_isolation(sandbox: Sandbox) -> None:
    """Skip the test on a machine whose kernel gives nobody the namespaces of a box; where it does, ours must work."""
    try:
        sandbox.check()
    except UserError as error:
        if subprocess.run(["unshare", "--user", "--pid", "--fork", "--mount", "--net", "true"]).returncode == 0:
            raise
        pytest.skip(f"no isolation: {error.problem}")


def leftovers(sandbox: Sandbox, seconds: float = 60.0) -> list[int]:
    """List processes of boxes that are still there after a while; a server is alone between runs."""
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for server in sandbox.pids() for pid in descendants(server) if pid != server]
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)
