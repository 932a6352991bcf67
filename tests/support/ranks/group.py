"""A group of processes, one a rank, each of which runs the same cases and writes how they ended to a file.

Modules of such cases are run as `python -m MODULE RANK WORLD DIRECTORY` and call `work`; tests call `run`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from tests.support.paths import ROOT

LIMIT_SECONDS = 600
# A rank that waits longer than this for another has lost it.
WAIT = timedelta(seconds=120)


def run(
    module: str,
    world: int,
    directory: Path,
    variables: Mapping[str, str] | None = None,
    *,
    limit: float = LIMIT_SECONDS,
) -> list[dict[str, str]]:
    """Start a group and wait for it: by rank, how each case ended; empty where well.

    A rank that wrote nothing ended with its log's last lines, under every case.

    Args:
        module: what every rank runs.
        world: number of ranks.
        directory: for the group's files.
        variables: of the environment, added to this one.
        limit: seconds for all cases together.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | dict(variables or {})
    command = [sys.executable, "-W", "ignore", "-m", module]
    logs = [directory / f"{rank}.log" for rank in range(world)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as out:
                arguments = [*command, str(rank), str(world), str(directory)]
                processes.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=out, stderr=out))
        deadline = time.monotonic() + limit
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(1, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [_ending(directory / f"{rank}.json", log) for rank, log in enumerate(logs)]


def _ending(results: Path, log: Path) -> dict[str, str]:
    if results.exists():
        return defaultdict(lambda: "did not run: an earlier case broke off", json.loads(results.read_text()))
    return defaultdict(lambda: f"wrote no results: {log.read_text()[-2000:]}")


def problems(ended: list[dict[str, str]], case: str) -> str:
    """Collect the errors of a case by rank; empty when there are none."""
    return "\n".join(f"rank {rank}: {endings[case]}" for rank, endings in enumerate(ended) if endings[case])


def work(cases: Callable[[int], Mapping[str, Callable[[int, int], None]]]) -> None:
    """Be the rank that the command line names: run the cases of this world, each given rank and world."""
    import torch
    import torch.distributed as dist

    rank, world, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=world, timeout=WAIT
    )
    ended = {}
    for name, case in cases(world).items():
        try:
            case(rank, world)
            ended[name] = ""
        except AssertionError:
            ended[name] = traceback.format_exc()
        except Exception:
            # Ranks may be out of step from here on.
            ended[name] = traceback.format_exc()
            break
    (directory / f"{rank}.json").write_text(json.dumps(ended))
    dist.destroy_process_group()
