"""Run a benchmark's one process as verl's workers run without an accelerator."""

from __future__ import annotations

import os
import socket
import sys

from verl_s2d.platforms.environment import cpu_environment


def restart_on_cpu(module: str) -> None:
    """Start this process again with the variables that verl reads at its import, and those of a group of one rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one_rank = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    needed = cpu_environment() | one_rank
    if not needed.keys() - {"OMP_NUM_THREADS"} <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | needed)
