"""Stages side by side: what may start, failures, signals, and the Ray head of each lane."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT
from tests.support.workflow.project import FakeStages, write_project
from tests.support.workflow.runs import Lines, build, directory, project
from verl_s2d.errors import UserError
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.hosts.local_cluster import RayCluster
from verl_s2d.workflow.hosts.process import SubprocessLauncher, marked_processes
from verl_s2d.workflow.hosts.ray_places import Demand
from verl_s2d.workflow.schedule import Schedule, preparing
from verl_s2d.workflow.stage import Stage
from verl_s2d.workflow.store import checkpoints
from verl_s2d.workflow.store.run_directory import read_record

ROWS = ["direct-grpo", "half-split"]
"""Rows whose first stages, RL on the student and on the teacher, do not depend on each other."""


def planned(tmp_path, monkeypatch, **changes):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan = project(tmp_path, rows=ROWS, cluster__side_by_side=2, **changes)
    # Of a cluster that the fake stages do not use.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    return plan


def test_independent_stages_run_at_the_same_time(tmp_path, monkeypatch):
    """Each of the two waits for the other: one after the other they would never end."""
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "meet"}))
    plan = planned(tmp_path, monkeypatch)
    assert build(plan) == [] and not plan.missing()
    alone = make_plan(load_recipe(write_project(tmp_path / "alone")), run_dir=tmp_path / "run", rows=ROWS)
    assert not alone.missing(), "it rebuilds nothing"


def test_a_failure_lets_the_other_stage_end_and_starts_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "meet", "rollouts": "crash@1", "warmup": "crash@1"}))
    plan, progress = planned(tmp_path, monkeypatch), Lines()
    (failure,) = build(plan, progress=progress)
    assert "warmup-1h failed" in str(failure)
    built = {node.name for node in plan.order} - {node.name for node in plan.missing()}
    assert {"student-rl-all", "teacher-rl-1h", "rollouts-1h"} <= built and "opd-1h" not in built
    assert build(plan) == []


def test_keep_going_builds_what_does_not_depend_on_a_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"opd": "crash@1"}))
    plan, progress = planned(tmp_path, monkeypatch), Lines()
    assert len(build(plan, progress=progress, keep_going=True)) == 1
    assert "evaluate-direct-grpo" not in {node.name for node in plan.missing()}
    assert any("needs a stage that failed" in note for note in progress.notes)


class FullDisk(FakeStages):
    """A launcher whose teacher RL finds no room on the disk, while the other stage runs."""

    def start(self, argv, env, cwd, log):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(28, "No space left on device")
        return super().start(argv, env, cwd, log)


def test_an_error_in_another_lane_ends_the_run(tmp_path, monkeypatch):
    plan = planned(tmp_path, monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        build(plan, FullDisk())
    assert build(plan) == []


DRIVER = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.support.workflow.project import FakeStages
from tests.support.workflow.runs import Lines
from verl_s2d.workflow.failures import Interrupted
from verl_s2d.stages.planning import make_plan
from verl_s2d.recipe.load import load_recipe
from verl_s2d.workflow.runner import run_plan
plan = make_plan(load_recipe({recipe!r}), run_dir=Path({run!r}), rows={rows!r})
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
try:
    sys.exit(len(run_plan(plan, Lines(), launcher=FakeStages())))
except Interrupted as error:
    sys.exit(128 + error.number)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_both_stages(tmp_path, monkeypatch, number):
    plan = planned(tmp_path, monkeypatch, stages__student_rl__save_every=100, stages__teacher_rl__save_every=100)
    recipe, run = str(tmp_path / "recipe.yaml"), tmp_path / "run"
    code = DRIVER.format(root=str(ROOT), recipe=recipe, run=str(run), rows=ROWS)
    environment = {**os.environ, "FAKE": json.dumps({"grpo": "slow"})}
    environment.pop("RAY_ADDRESS")
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    both = [directory(plan, name) for name in ("student-rl-all", "teacher-rl-1h")]
    deadline = time.monotonic() + 120
    while not all(read_metrics(stage) for stage in both):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert marked_processes(read_record(run)["id"]) == []
    if number == signal.SIGTERM:
        for stage in both:
            assert checkpoints.completed_step(stage / "checkpoints") == max(read_metrics(stage))
    assert build(plan) == [] and not plan.missing()


@pytest.mark.parametrize(("changes", "given"), [({"cluster__device": "cuda"}, False), ({}, True)])
def test_it_is_refused_where_a_stage_has_the_whole_cluster(tmp_path, monkeypatch, changes, given):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match="side by side"):
        project(tmp_path, rows=ROWS, cluster__side_by_side=2, **changes)


class Step(Stage):
    """A stage of a graph that nobody builds."""

    kind = "step"

    def __init__(self, prepares: bool):
        self.prepares = prepares

    def command(self, node, context, attempt):
        raise AssertionError("nobody builds it")

    def describe(self, node):
        return "a step"


@st.composite
def graphs(draw) -> list[Node]:
    """Graphs in build order, whose first stages may prepare."""
    nodes: list[Node] = []
    for at in range(draw(st.integers(1, 12))):
        inputs = draw(st.sets(st.integers(0, at - 1), max_size=3)) if at else set()
        node = Node(Step(draw(st.booleans())), f"n{at}", {"at": at}, inputs={f"i{k}": nodes[k] for k in sorted(inputs)})
        nodes.append(node)
    return nodes


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(1, 4), st.sets(st.integers(0, 11)))
def test_every_stage_is_handed_out_once_and_after_its_inputs(nodes, lanes, broken):
    """Stages that fail, and those above them, are not handed out again; all others are built."""
    failed: set[str] = set()
    schedule, built, handed = Schedule(dict(enumerate(nodes)), failed, True, lambda text: None), set(), []

    def work() -> None:
        while (taken := schedule.take()) is not None:
            at, node = taken
            handed.append(at)
            assert all(source.digest in built for source in node.inputs.values())
            if at in broken:
                schedule.failed(node, StageFailed("broken"))
            else:
                built.add(node.digest)
                schedule.built(node)

    threads = [threading.Thread(target=work) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    whole: set[str] = set()
    for at, node in enumerate(nodes):
        if at not in broken and all(source.digest in whole for source in node.inputs.values()):
            whole.add(node.digest)
    assert built == whole and len(handed) == len(set(handed)) and built.isdisjoint(failed)


@settings(max_examples=100, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_a_stage_waits_for_all_of_its_inputs_however_many_run(nodes, rng):
    """As many stages as are ready are in work, and they end in any order."""
    schedule = Schedule(dict(enumerate(nodes)), set(), True, lambda text: None)
    built, running, taken = set(), [], set()
    while len(built) < len(nodes):
        ready = [n for n in nodes if n.digest not in taken and all(i.digest in built for i in n.inputs.values())]
        for _ in ready:
            _, node = schedule.take()
            assert node in ready
            taken.add(node.digest)
            running.append(node)
        ended = running.pop(rng.randrange(len(running)))
        built.add(ended.digest)
        schedule.built(ended)
    assert schedule.take() is None


def test_ten_thousand_stages_that_need_a_failed_one_are_left_out():
    nodes = [Node(Step(False), "n", {"at": 0})]
    for at in range(1, 10_000):
        nodes.append(Node(Step(False), "n", {"at": at}, inputs={"i": nodes[-1]}))
    told: list[str] = []
    schedule = Schedule(dict(enumerate(nodes)), set(), True, told.append)
    _, first = schedule.take()
    schedule.failed(first, StageFailed("broken"))
    assert schedule.take() is None and len(told) == 10_000


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_preparation_needs_nothing_that_is_trained(nodes):
    first = preparing(nodes)
    for node in nodes:
        ready = node.stage.prepares and all(source.digest in first for source in node.inputs.values())
        assert (node.digest in first) == ready


def test_each_lane_has_its_own_files_and_marker(tmp_path):
    """Stopping one head must not stop the other."""
    run = "0123456789abcdef" * 2
    clusters = [
        RayCluster(tmp_path, run + ending, SubprocessLauncher(), {}, "cpu", Demand(1, 1), f"ray{ending}.log")
        for ending in ("", "-1")
    ]
    temporary = [cluster._temporary for cluster in clusters]
    assert [Path(path).name for path in temporary] == ["s2d-01234567", "s2d-01234567-1"]
