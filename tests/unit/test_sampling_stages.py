"""The stages that only sample, as the workflow sees them: engines on all GPUs of a machine, and sizes that fit it."""

from __future__ import annotations

import json

import pytest

from tests.unit.workflow_project import write_project
from verl_s2d.errors import UserError
from verl_s2d.workflow.planning import make_plan
from verl_s2d.workflow.preflight.sampling import check_samplers
from verl_s2d.workflow.recipe_file import load_recipe
from verl_s2d.workflow.sizing.estimate import Estimate
from verl_s2d.workflow.sizing.models import Models
from verl_s2d.workflow.stages import kinds

EIGHT = {"device": "cuda", "gpus_per_node": 8}


def plan_of(tmp_path, cluster, rollouts=1, evaluation=1):
    changes = {
        "stages__rollouts": {"per_prompt": 2, "tensor_parallel_size": rollouts},
        "evaluation": {"samples": 2, "tensor_parallel_size": evaluation},
    }
    recipe = write_project(tmp_path, cluster=cluster, **changes)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    for name in ("student", "teacher"):
        # A shape that `plan` knows.
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"vocab_size": 8, "model_type": "qwen3"}))
    return make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])


def argument(plan, kind, name):
    node = next(n for n in plan.order if n.kind == kind)
    argv = kinds()[kind].command(node, plan.context, 1).argv
    return dict(a.split("=", 1) for a in argv[3:])[name]


def test_engines_use_all_gpus_of_one_machine(tmp_path):
    plan = plan_of(tmp_path, EIGHT | {"nodes": 2}, rollouts=4)
    assert argument(plan, "rollouts", "replicas") == "2" and argument(plan, "evaluate", "replicas") == "8"
    sizes = Estimate(plan, {}, Models(plan)).view()["stages"]
    engines = {label.partition("-")[0]: size["memory"]["sampling"]["replicas"] for label, size in sizes.items()}
    assert engines == {"rollouts": 2, "evaluate": 8}


def test_on_a_cpu_there_is_one(tmp_path):
    plan = plan_of(tmp_path, EIGHT | {"device": "cpu"})
    assert argument(plan, "rollouts", "replicas") == argument(plan, "evaluate", "replicas") == "1"


@pytest.mark.parametrize(
    ("sizes", "key", "remedy"),
    [
        ({"rollouts": 3}, "stages.rollouts.tensor_parallel_size", "divisor of 8"),
        ({"evaluation": 16}, "evaluation.tensor_parallel_size", "divisor of 8"),
        ({"rollouts": 8}, "stages.rollouts.tensor_parallel_size", "divisor of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_run_and_by_plan(tmp_path, sizes, key, remedy):
    plan = plan_of(tmp_path, EIGHT, **sizes)
    for look in (lambda: check_samplers(plan, plan.order), lambda: Estimate(plan, {}, Models(plan)).view()):
        with pytest.raises(UserError) as refused:
            look()
        assert refused.value.key == key and remedy in refused.value.remedy
