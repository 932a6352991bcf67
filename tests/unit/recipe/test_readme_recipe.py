"""The recipes of README and docs/recipe.md, as they stand there: checked at their size, and run at a tiny one."""

from __future__ import annotations

import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.paths import ROOT
from verl_s2d.checks import check_plan
from verl_s2d.checks.inputs.batch_sizes import check_batches
from verl_s2d.checks.inputs.data_slices import check_data
from verl_s2d.checks.inputs.verl_keys import check_verl_keys
from verl_s2d.checks.software import check_verifier
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.verl_settings.overrides import value_of

SECTIONS = {"README.md": "\n## Your own data\n", "docs/recipe.md": "# A recipe\n"}


@pytest.fixture(params=SECTIONS)
def recipe(request, tmp_path):
    section = (ROOT / request.param).read_text().partition(SECTIONS[request.param])[2]
    path = tmp_path / "recipe.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", section, re.S).group(1))
    for name, numbers in (("train", range(4096)), ("held_out", range(5000, 5010))):
        rows = [
            {
                "prompt": [{"role": "user", "content": f"What is the last digit of {i} + 7?"}],
                "data_source": "digits",
                "reward_model": {"style": "rule", "ground_truth": str((i + 7) % 10)},
                "extra_info": {"index": f"{name}-{i}"},
            }
            for i in numbers
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    return path


def test_it_is_planned_and_checked(recipe, tmp_path):
    plan = make_plan(load_recipe(recipe, ["cluster.device=cuda"]), run_dir=tmp_path / "run")
    check_verifier(plan)
    check_verl_keys(plan.order)
    check_data(plan)
    check_batches(plan, plan.order)


@pytest.mark.parametrize(("labels", "gpus", "batches"), [(40, 1, (16, 8, 16, 16)), (4096, 8, (128, 8, 64, 64))])
def test_batches_that_it_does_not_choose_fit_the_slices(recipe, tmp_path, labels, gpus, batches):
    changes = [f"data.labels={labels}", f"cluster.gpus_per_node={gpus}", "cluster.device=cuda"]
    plan = make_plan(load_recipe(recipe, [*changes, "stages.teacher_rl.verl={}"]), run_dir=tmp_path / "run")
    check_batches(plan, plan.order)
    found = {
        n.kind: n.settings["verl"] for n in plan.order if n.kind in ("grpo", "opd") and n.settings["slice"] == "1h"
    }
    keys = ("data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size")
    assert tuple(value_of(found[kind], key) for kind in ("grpo", "opd") for key in keys) == batches


def test_it_is_checked_at_tiny_size(recipe, tmp_path):
    plan = make_plan(load_recipe(recipe, shrink="cpu"), run_dir=tmp_path / "run")
    check_plan(plan)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", ["README.md"], indirect=True)
def test_it_runs_at_tiny_size(recipe, tmp_path):
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--shrink", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([*command, "--rows", "half-split"], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
