"""A verifier whose service dies in the middle of GRPO: no wrong 0, not in validations either, and a resumed stage."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.minimal_recipe import write_minimal_recipe
from tests.support.tiny import write_problems
from tests.support.workflow.faults import running
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.workflow.store.checkpoints import completed_step

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS, GROUPS, ROLLOUTS = 3, 8, 2
VERIFIER = """
import os
import sys
from pathlib import Path

from verl_s2d.errors import Unscored
from verl_s2d.verifiers import score

score.PAUSES = (0.05,)
HERE = Path(__file__).parent


def judge(data_source, solution_str, ground_truth, extra_info=None):
    '''Give every response 1, but for an outage that begins and ends with so many calls of verl's reward worker.'''
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        calls = os.open(HERE / "calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(calls, b".")
        number = os.lseek(calls, 0, os.SEEK_CUR)
        os.close(calls)
        begin, end = map(float, (HERE / "outage").read_text().split())
        if begin <= number < end:
            raise Unscored("the sandbox is down")
        if extra_info["index"] == (HERE / "unjudged").read_text():
            raise Unscored("no verdict on this problem")
    return 1.0
"""


def write_recipe(directory: Path) -> Path:
    """Direct GRPO, with a validation of four problems, of which one is never judged."""
    problems = pq.read_table(write_problems(directory / "all.parquet", 44))
    for name, begin, count in (("train", 0, 32), ("eval", 32, 8), ("validation", 40, 4)):
        pq.write_table(problems.slice(begin, count), directory / f"{name}.parquet")
    (directory / "judge.py").write_text(VERIFIER)
    (directory / "unjudged").write_text(problems["extra_info"].to_pylist()[41]["index"])
    path = write_minimal_recipe(directory, name="outage", rows=["direct-grpo"])
    recipe = yaml.safe_load(path.read_text())
    recipe["verifier"] = "judge.py:judge"
    files = {name: str(directory / f"{name}.parquet") for name in ("train", "validation")}
    recipe["data"] = {"prompt_tokens": 8, "response_tokens": 6, "labels": 32, "eval": {"held": "eval.parquet"}, **files}
    recipe["stages"] = {"student_rl": recipe["stages"]["student_rl"] | {"steps": STEPS, "validate_every": 1}}
    recipe.pop("teacher")
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.timeout(1800)
def test_a_sandbox_that_dies_half_way_leaves_no_wrong_zero_and_the_stage_goes_on(tmp_path):
    recipe, run_dir = write_recipe(tmp_path), tmp_path / "run"
    (tmp_path / "outage").write_text(f"{GROUPS * ROLLOUTS + 6} inf")
    with running(recipe, run_dir) as run:
        assert run.wait(800) == 1, run.output[-3000:]
        assert "the sandbox is down" in run.output and "resumes from its last checkpoint" in run.output
    (stage,) = (path.parent for path in run_dir.glob("stages/*/checkpoints"))
    assert completed_step(stage / "checkpoints") == 1 and not (stage / "manifest.json").exists()

    (tmp_path / "calls").unlink()
    (tmp_path / "outage").write_text(f"0 {2 * GROUPS * ROLLOUTS + 2}")
    with running(recipe, run_dir) as run:
        assert run.wait(800) == 0, run.output[-3000:]
        assert "ALARM, unscored" in run.output
    steps, manifest = read_metrics(stage), json.loads((stage / "manifest.json").read_text())
    assert sorted(steps) == list(range(1, STEPS + 1))
    for data in steps.values():
        assert data["critic/score/min"] == data["critic/score/max"] == data["val-core/sums/acc/mean@1"] == 1
        assert data["s2d/validation_unscored"] == 1 and data["s2d/validation_unscored_share"] == 1 / 4
    dropped = [steps[step]["s2d/unscored_groups"] for step in sorted(steps)]
    assert dropped[0] == dropped[2] == 0 < dropped[1] and steps[2]["s2d/unscored_share"] == dropped[1] / GROUPS
    assert manifest["ledger"]["unscored_calls"] >= dropped[1] + STEPS
    assert manifest["ledger"]["sampled_tokens"] > 0
    print(dropped, {key: value for key, value in manifest["ledger"].items() if value and key != "labels_read"})
