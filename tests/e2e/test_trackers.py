"""Curves in a tracker: TensorBoard's files of real stages, read back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from tests.support.minimal_recipe import write_minimal_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(1500)
def test_tensorboard_has_what_the_stages_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, run_dir = write_minimal_recipe(tmp_path, name="tracked", rows=["full-bridge"]), tmp_path / "run"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"logger": ["tensorboard"]}))
    run = [sys.executable, "-m", "verl_s2d", "run", str(recipe), "--run-dir", str(run_dir)]
    subprocess.run(run, check=True, stdout=sys.stderr, timeout=1200)

    manifests = {json.loads(path.read_text())["name"]: path.parent for path in run_dir.glob("stages/*/manifest.json")}
    tracked = {path.name for path in (run_dir / "tensorboard").iterdir()}
    assert tracked == {"teacher-rl-all", "warmup-all", "opd-all"}
    for name, key in (
        ("teacher-rl-all", "critic/score/mean"),
        ("warmup-all", "train/forward_kl"),
        ("opd-all", "s2d/reverse_kl"),
    ):
        (log,) = (manifests[name] / "metrics").glob("attempt-*.jsonl")
        logged = {entry["step"]: entry["data"].get(key) for entry in map(json.loads, log.read_text().splitlines())}
        events = EventAccumulator(str(run_dir / "tensorboard" / name)).Reload().Scalars(key)
        assert {event.step: event.value for event in events} == pytest.approx(logged, rel=1e-6)
        assert len(events) == 2
