"""A vocabulary divided among ranks gives what a single process does; the cases are in tests/vocab_parallel_ranks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from tests.vocab_parallel_ranks import cases

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 240


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """world -> how each case ended, by rank. A group runs once, all its cases in one go, also when it fails."""
    return cache(lambda world: run(world, tmp_path_factory.mktemp(f"ranks{world}")))


def run(world: int, directory: Path) -> list[dict[str, str]]:
    """Start a group and wait for it; a rank that wrote nothing ended with its log's last lines, under every case."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.vocab_parallel_ranks"]
    logs = [directory / f"{rank}.log" for rank in range(world)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as out:
                arguments = [*command, str(rank), str(world), str(directory)]
                processes.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=out, stderr=out))
        deadline = time.monotonic() + LIMIT_SECONDS
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


@pytest.mark.parametrize(("world", "case"), [(world, case) for world in (2, 4) for case in cases(world)])
def test_every_rank_gets_what_a_single_process_does(world, case, endings):
    problems = {rank: ended[case] for rank, ended in enumerate(endings(world)) if ended[case]}
    assert not problems, "\n".join(f"rank {rank}: {problem}" for rank, problem in problems.items())
