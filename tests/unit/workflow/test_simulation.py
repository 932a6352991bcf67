"""Many rows on a simulated executor: every stage once, inputs first, failures where they belong; and a run that is
killed at any of its writes, again and again, ends with the ledger of what really happened."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.workflow.runs import Lines
from tests.support.workflow.simulated_runs import (
    FAILED,
    Executor,
    check_ledgers,
    check_what_is_there,
    plan_of,
    simulate_machine,
)
from verl_s2d.report.inputs import finished_rows
from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.runner import run_plan
from verl_s2d.workflow.schedule import preparing

KILLED, CRASHED = 70, 72


@pytest.fixture(autouse=True)
def _simulated(monkeypatch):
    simulate_machine(monkeypatch)


def in_order(missing: list[Node]) -> list[str]:
    """Labels of the stages that prepare, then of the others, both in the order of the plan."""
    first = preparing(missing)
    return [n.label for n in sorted(missing, key=lambda n: n.digest not in first)]


def test_two_hundred_rows_share_their_stages(tmp_path):
    plan = plan_of(tmp_path, ["all"], list(range(17)))
    assert len(plan.rows) >= 200 and len(plan.order) < sum(len(ancestors(row.target)) for row in plan.rows) / 1.5
    executor = Executor(plan)
    assert run_plan(plan, Lines(), launcher=executor) == []
    assert executor.started == in_order(plan.order), "each once"
    assert len(finished_rows(plan)) == len(plan.rows)
    again = Executor(plan)
    assert run_plan(plan, Lines(), launcher=again) == [] and again.started == []


@pytest.mark.parametrize("seed", range(6))
def test_a_failure_takes_its_dependants_along_and_nobody_else(tmp_path, seed):
    plan = plan_of(tmp_path, ["all"], [0, 1])
    failing = set(random.Random(seed).sample([node.label for node in plan.order], 4))
    executor, progress = Executor(plan, failing), Lines()
    failures = run_plan(plan, progress, launcher=executor, keep_going=True)
    spoilt = {n.label for n in plan.order if failing & {a.label for a in ancestors(n)}}
    first = {n.label for n in plan.order if failing & {a.label for a in ancestors(n)} == {n.label}}
    assert {n.label for n in plan.missing()} == spoilt
    assert len(failures) == len(first) and Counter(executor.started) == Counter(
        [n.label for n in plan.order if n.label not in spoilt - first]
    )
    again = Executor(plan)
    assert run_plan(plan, Lines(), launcher=again) == []
    assert again.started == in_order([n for n in plan.order if n.label in spoilt]), "the rest, and only the rest"


def attempt(plan: Plan, truth: Path, kill_at: int | None) -> tuple[int, int]:
    """One `run` in a child process that is ended, as kill -9 does, before its kill_at-th write to the disk.

    Returns:
        (exit code, how many writes it came to).
    """
    with tempfile.TemporaryFile() as told:
        pid = os.fork()
        if pid == 0:
            code = CRASHED
            try:
                code = _run(plan, truth, kill_at, told.fileno())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, os.fstat(told.fileno()).st_size


def _run(plan: Plan, truth: Path, kill_at: int | None, told: int) -> int:
    executor = Executor(plan, truth=truth)
    writes = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal writes
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writing or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            writes += 1
            os.write(told, b".")
            if writes == kill_at:
                os._exit(KILLED)

    sys.addaudithook(count)
    return FAILED if run_plan(plan, Lines(), launcher=executor) else 0


def killed_and_resumed(directory: Path, kills: list[int]) -> None:
    plan, truth = plan_of(directory, ["half-split"], [0]), directory / "truth"
    for kill_at in kills:
        code, _ = attempt(plan, truth, kill_at)
        assert code in (KILLED, 0)
        check_what_is_there(plan)
    assert attempt(plan, truth, None)[0] == 0
    assert not plan.missing()
    check_what_is_there(plan)
    check_ledgers(plan, truth)
    before = truth.read_text()
    assert attempt(plan, truth, None)[0] == 0 and truth.read_text() == before


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 260), min_size=1, max_size=8))
@example([1, 2, 3, 4, 5, 6, 7, 8])
@example([60] * 8)
def test_ledgers_are_exact_whenever_a_run_is_killed(kills):
    with tempfile.TemporaryDirectory() as directory:
        killed_and_resumed(Path(directory), kills)


@pytest.mark.slow
def test_a_kill_before_every_single_write(tmp_path):
    (tmp_path / "whole").mkdir()
    plan = plan_of(tmp_path / "whole", ["half-split"], [0])
    code, writes = attempt(plan, tmp_path / "whole" / "truth", None)
    assert code == 0
    print(json.dumps({"writes": writes}))
    for kill_at in range(1, writes + 1):
        directory = tmp_path / str(kill_at)
        directory.mkdir()
        killed_and_resumed(directory, [kill_at])
