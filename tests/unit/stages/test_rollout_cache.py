"""The cache of teacher rollouts: as many as the warmup reads, and a warning where most are thrown away."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import write_project
from verl_s2d.checks import check_plan
from verl_s2d.checks.inputs.samplers import cache_warnings
from verl_s2d.recipe.load import load_recipe
from verl_s2d.sizing.cache import CacheUse, cache_use, waste_warning
from verl_s2d.sizing.estimate import Estimate
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.stages import stages
from verl_s2d.stages.planning import make_plan

AUTO = {"stages__rollouts": {}}


def plan_of(directory, rows=("full-bridge",), **changes):
    return make_plan(load_recipe(write_project(directory, **changes)), run_dir=directory / "run", rows=list(rows))


def of_kind(plan, kind):
    return [node for node in plan.order if node.kind == kind]


def arguments(plan, node):
    return dict(a.split("=", 1) for a in node.stage.command(node, plan.context, 1).argv[3:])


def test_the_cache_is_what_the_warmup_reads(tmp_path):
    """4 steps of 4."""
    plan = plan_of(tmp_path, **AUTO)
    (rollouts,) = of_kind(plan, "rollouts")
    assert rollouts.settings["rows"] == 16 and "per_prompt" not in rollouts.settings
    told = arguments(plan, rollouts)
    assert told["rows"] == "16" and told["n"] == "null"
    assert stages()["rollouts"].describe(rollouts).startswith("16 teacher rollouts of slice all")


@pytest.mark.parametrize(
    ("change", "rows"),
    [({"stages__warmup__steps": 5}, 20), ({"stages__warmup__verl": {"data.train_batch_size": 2}}, 8)],
)
def test_it_follows_the_warmup_and_its_digest_says_so(change, rows, tmp_path):
    before, after = (of_kind(plan_of(tmp_path, **AUTO, **c), "rollouts")[0] for c in ({}, change))
    assert after.settings["rows"] == rows and after.digest != before.digest


def test_a_number_for_each_prompt_stays_what_it_was(tmp_path):
    before, after = (of_kind(plan_of(tmp_path, **c), "rollouts")[0] for c in ({}, {"stages__warmup__steps": 9}))
    assert before.settings["per_prompt"] == 2 and "rows" not in before.settings
    assert before.digest == after.digest


@pytest.mark.parametrize(("updates", "own"), [(7, True), (3, False)])
def test_a_matched_warmup_with_more_steps_has_a_cache_of_its_own(updates, own, tmp_path):
    plan = plan_of(
        tmp_path,
        ["warmup-only", "m"],
        **AUTO,
        stages__teacher_rl__steps=1,
        stages__student_rl__steps=1 + updates,
        matched={"m": {"row": "warmup-only", "to": "direct-grpo", "by": "updates"}},
    )
    warmups = {node.name: node for node in of_kind(plan, "warmup")}
    matched = warmups["warmup-all-m"]
    assert matched.settings["steps"] == updates
    rows = {name: node.inputs["rollouts"].settings["rows"] for name, node in warmups.items()}
    assert rows == {"warmup-all": 16, "warmup-all-m": 4 * updates if own else 16}
    names = [node.name for node in of_kind(plan, "rollouts")]
    assert sorted(names) == (["rollouts-all", "rollouts-all-m"] if own else ["rollouts-all"])


@pytest.mark.parametrize(
    ("settings", "problems", "rows"),
    [
        ({"rows": 10, "temperature": 1.0}, None, 10),
        ({"rows": 10, "temperature": 1.0}, 4, 10),
        ({"rows": 10, "temperature": 0.0}, 4, 4),
        ({"rows": 10, "temperature": 0.0}, None, None),
        ({"per_prompt": 3, "temperature": 1.0}, 4, 12),
        ({"per_prompt": 3, "temperature": 1.0}, None, None),
    ],
)
def test_rows_of_a_cache(settings, problems, rows):
    from verl_s2d.workflow.graph import Node

    rollouts = Node(stages()["rollouts"], "rollouts", settings)
    assert rollouts.stage.sequences(rollouts, problems) == rows


def test_use_is_what_the_longest_warmup_reads(tmp_path):
    plan = plan_of(tmp_path, stages__rollouts={"per_prompt": 8})
    (rollouts,) = of_kind(plan, "rollouts")
    use = cache_use(rollouts, plan.order, 16)
    assert use == CacheUse(sampled=128, read=16, tokens=4)
    assert (use.sampled_tokens, use.read_tokens, use.wasted) == (512, 64, 0.875)
    assert cache_use(rollouts, plan.order, None) is None
    small = cache_use(rollouts, plan.order, 1)
    assert (small.sampled, small.read, small.wasted) == (8, 8, 0.0), "read twice"


@pytest.mark.parametrize(("per_prompt", "warned"), [(2, False), (3, True), (None, False)])
def test_more_than_half_thrown_away_is_a_warning_of_check_run_and_plan(per_prompt, warned, tmp_path):
    """16 problems, 16 rollouts read: at 2 a prompt just half."""
    plan = plan_of(tmp_path, stages__rollouts={"per_prompt": per_prompt} if per_prompt else {})
    words = "rollouts-all samples 48 rollouts, of which the warmup reads 16 (67% is thrown away)"
    view = Estimate(plan, {}, Models(plan)).view()
    for warnings in (cache_warnings(plan, plan.order), check_plan(plan), view["warnings"]):
        assert any(words in warning for warning in warnings) == warned
        assert warned or not any("thrown away" in warning for warning in warnings)
    cache = next(stage["cache"] for label, stage in view["stages"].items() if label.startswith("rollouts-"))
    sampled = 16 * (per_prompt or 1)
    assert cache == {
        "rows_sampled": sampled,
        "rows_read": 16,
        "tokens_sampled": 4 * sampled,
        "tokens_read": 64,
    }


def test_just_half_is_no_warning():
    from verl_s2d.workflow.graph import Node

    node = Node(stages()["rollouts"], "rollouts-all", {})
    assert waste_warning(node, CacheUse(10, 5, 1)) is None
    assert "60% is thrown away" in waste_warning(node, CacheUse(10, 4, 1))
