"""A clock that jumps, by hours or days in either direction, while stages run."""

from __future__ import annotations

import random
import time

from tests.support.workflow.project import SimulatedStages
from tests.support.workflow.runs import Lines, build, directory, project
from verl_s2d.report.inputs import finished_rows
from verl_s2d.workflow.store.manifest import read_manifest
from verl_s2d.workflow.store.verify import verify_run


def test_a_clock_that_jumps_stops_nothing_and_adds_no_time(seed, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)
    rng, now, offset = random.Random(seed), time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: now() + offset)

    class Jumping(SimulatedStages):
        def start(self, argv, env, cwd, log):
            nonlocal offset
            handle = super().start(argv, env, cwd, log)
            offset += rng.choice((-1, 1)) * rng.uniform(3600, 10 * 86400)
            return handle

    plan, progress = project(tmp_path, cluster__stall_minutes=0.1), Lines()
    assert build(plan, Jumping(), progress) == []
    fault("clock set by hours or days, back and forth", "every stage of a simulated run")
    assert not any("stalled" in note for note in progress.notes) and not plan.missing()
    for node in plan.order:
        assert 0 <= read_manifest(directory(plan, node.name))["ledger"]["seconds"] < 60, node.name
    (row,) = [row for row in finished_rows(plan) if row.name == "half-split"]
    assert 0 <= row.ledger["seconds"] < 300 and verify_run(plan.context.run_dir).ok
    again = SimulatedStages()
    assert build(plan, again) == [] and again.started == []
