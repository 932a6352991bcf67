"""The keys of verl that stages set themselves: a recipe cannot set them, and nothing else is withheld from it."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import settings, write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.grpo.stage import Grpo
from verl_s2d.stages.opd.stage import Opd
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.reserved_keys import STAGE_OF_SECTION
from verl_s2d.stages.warmup.stage import Warmup
from verl_s2d.verl_settings.overrides import bare_key

OLDER_NAMES = {"custom_reward_function.path"}
"""Keys that verl still reads in place of one that is set."""


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    matched = {"spent": {"row": "direct-grpo", "to": "half-split", "by": "sampled_tokens"}}
    matched["distilled"] = {"row": "opd-only", "to": "half-split", "by": "sampled_tokens"}
    path = tmp_path_factory.mktemp("project")
    asking_two = dict.fromkeys(("stages__warmup__signal", "stages__opd__signal"), "exopd_exact")
    recipe = write_project(
        path,
        data__chat_template={"enable_thinking": False},
        matched=matched,
        models={"base": settings()["student"]},
        stages__student_rl__credit={"type": "kdrl", "beta_end": 0.2},
        verifier="math",
        stages__opd__travel=True,
        stages__warmup__until={"plateau": {"of": "divergence", "window": 3}},
        stages__warmup__problem_weights={},
        stages__opd__problem_weights={},
        stages__opd__prefix={"start": 1, "grow": 1},
        stages__opd__teacher_prompt="{prompt} {answer}",
        **asking_two,
    )
    rows = ["half-split", "opd-only", *matched]
    served = write_project(
        tmp_path_factory.mktemp("served"),
        stages__opd__servers={"teacher": {}},
        stages__opd__signal="uni_opd",
        cluster__gpus_per_node=2,
    )
    own = write_project(tmp_path_factory.mktemp("own"), stages__opd__teacher_refresh=2)
    pooled = {"data__prompts": {"script": "pool.py"}, "rows": ["bridge-unlabelled"]}
    pool = write_project(tmp_path_factory.mktemp("pool"), **pooled)
    (pool.parent / "pool.py").write_text("")
    return [
        make_plan(load_recipe(pool), run_dir=path / "run"),
        make_plan(load_recipe(own), run_dir=path / "run", rows=["self-teacher"]),
        make_plan(load_recipe(recipe), run_dir=path / "run", rows=rows),
        make_plan(load_recipe(served), run_dir=path / "run", rows=["half-split"]),
    ]


@pytest.mark.parametrize("stage", [Grpo, Warmup, Opd], ids=lambda stage: stage.kind)
def test_a_stage_sets_exactly_the_keys_that_it_reserves(plans, stage):
    nodes = [(node, plan.context) for plan in plans for node in plan.order if isinstance(node.stage, stage)]
    found = {bare_key(key) for node, context in nodes for key in node.stage.overrides(node, context)}
    set_by_it = {next((r for r in stage.reserved if key == r or key.startswith(f"{r}.")), key) for key in found}
    assert set_by_it == set(stage.reserved) - OLDER_NAMES
    commands = [argument for node, context in nodes for argument in node.stage.command(node, context, 1).argv]
    for key in found:
        assert any(bare_key(argument).startswith(f"{key}=") for argument in commands), f"{key} does not reach verl"


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section, stage in STAGE_OF_SECTION.items() for key in stage.reserved]
)
def test_a_recipe_cannot_set_them(tmp_path, section, key):
    recipe = write_project(tmp_path, **{f"stages__{section}__verl__{key}": 1})
    with pytest.raises(UserError) as caught:
        make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])
    assert caught.value.key == f"stages.{section}.verl.{key}" and caught.value.remedy
