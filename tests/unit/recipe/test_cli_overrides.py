"""Overrides of a recipe's keys on the command line, and what a run directory remembers of them."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.support.workflow.project import settings, write_project
from verl_s2d import cli
from verl_s2d.command_line import parse
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan, plan_to_keep
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan

LR = "actor_rollout_ref.actor.optim.lr"


def test_any_key_is_set_as_the_file_would(tmp_path):
    recipe = load_recipe(
        write_project(tmp_path, sft_teacher=None),
        [
            "stages.opd.steps=50",
            "seeds=[0,1]",
            f"stages.opd.verl.{LR}=1e-6",
            "stages.opd.verl.+s2d.keep_tokens=0.5",
            "evaluation.engine.gpu_memory_utilization=0.5",
            "alarms.kl_blow_up.window=8",
            "stages.opd.alarms.kl_blow_up.action=stop",
            "matched.same.row=direct-grpo",
            "matched.same.to=half-split",
            "matched.same.by=updates",
            "models.sft_teacher=teacher",
            "data.labels=null",
            "name=first",
            "name=last",
        ],
    )
    assert (recipe.stages.opd.steps, recipe.seeds, recipe.name, recipe.data.labels) == (50, [0, 1], "last", None)
    opd = settings()["stages"]["opd"]["verl"]
    assert recipe.stages.opd.verl == {**opd, LR: 1e-6, "+s2d.keep_tokens": 0.5}
    assert recipe.evaluation.engine == {"gpu_memory_utilization": 0.5}
    alarms = recipe.stage_alarms("opd")
    assert (alarms.kl_blow_up.window, alarms.kl_blow_up.action) == (8, "stop")
    assert recipe.matched["same"].by == "updates" and recipe.models["sft_teacher"].model == "teacher"


def test_an_override_is_the_edited_file(tmp_path):
    def digests(overrides=(), **changes):
        recipe = load_recipe(write_project(tmp_path, **changes), overrides)
        return [node.digest for node in make_plan(recipe, run_dir=tmp_path / "run").order]

    assert digests(["stages.opd.steps=6"]) == digests(stages__opd__steps=6) != digests()


def test_a_section_that_an_anchor_shares_changes_in_one_place(tmp_path):
    data = settings()
    data["stages"]["teacher_rl"]["verl"] = data["stages"]["student_rl"]["verl"] = {"data.train_batch_size": 4}
    path = write_project(tmp_path)
    path.write_text(yaml.safe_dump(data))
    assert "&id" in path.read_text()
    stages = load_recipe(path, ["stages.student_rl.verl.data.train_batch_size=8"]).stages
    assert stages.student_rl.verl != stages.teacher_rl.verl == {"data.train_batch_size": 4}


@pytest.mark.parametrize(
    ("override", "key", "word"),
    [
        ("stages.opd.stpes=5", "stages.opd.stpes", "Did you mean steps?"),
        ("stages.odp.steps=5", "stages.odp", "Did you mean opd?"),
        ("stages.opd.steps=many", "stages.opd.steps", "int"),
        ("+stages.opd.steps=5", "+stages", "Did you mean stages?"),
        ("student.revision=main", "student.revision", "student={revision: ...}"),
        ("rows=[half-splt]", "rows", "half-split"),
        ("stages.opd", "stages.opd", "key=value"),
        ("seeds=[0", "seeds", "yaml"),
    ],
)
def test_what_a_file_may_not_say_an_override_may_not(tmp_path, override, key, word):
    with pytest.raises(UserError) as caught:
        load_recipe(write_project(tmp_path), [override])
    assert caught.value.key == key and word in str(caught.value)


@pytest.mark.parametrize("command", ["check", "plan", "run", "status", "report", "gc"])
def test_overrides_stand_anywhere_after_the_recipe(command):
    given, run_dir = ["seeds=[3]", "stages.opd.steps=7"], ["--run-dir", "run"]
    for words in ([*given, *run_dir], [*run_dir, given[0], "--json", given[1]], [given[0], *run_dir, given[1]]):
        options = parse([command, "r.yaml", *words])
        assert (str(options.recipe), options.changes, str(options.run_dir)) == ("r.yaml", given, "run")
    with pytest.raises(SystemExit):
        parse([command, "r.yaml", "--rows", "half-split", "steps"])


def test_a_command_reads_them(tmp_path, capsys):
    recipe, run_dir = str(write_project(tmp_path)), ["--run-dir", str(tmp_path / "run")]
    assert cli.main(["status", recipe, *run_dir, "seeds=[3,4]", "--json"]) == cli.OK
    assert "half-split (seed 4)" in capsys.readouterr().out
    assert cli.main(["status", recipe, "steps"]) == cli.BAD_INPUT
    assert "key=value" in capsys.readouterr().err


def test_of_evaluate_models_and_overrides_are_told_apart():
    options = parse(["evaluate", "r.yaml", "opd-1h", "evaluation.samples=4", "runs/a=b/model", "--json", "seeds=[1]"])
    assert options.models == ["opd-1h", "runs/a=b/model"] and options.changes == ["evaluation.samples=4", "seeds=[1]"]
    with pytest.raises(SystemExit):
        parse(["evaluate", "r.yaml", "seeds=[1]"])


def ran(recipe, run_dir, *overrides):
    """Begin a run of the recipe, which is interrupted before its first stage."""

    def stop(final):
        raise KeyboardInterrupt

    plan = make_plan(load_recipe(recipe, overrides), run_dir=run_dir, rows=["half-split"])
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, PlainProgress(), check=stop)
    return plan


def kept(*run, **given):
    return [node.digest for node in plan_to_keep(*run, None, None, **given).order]


def test_a_run_directory_knows_the_overrides_of_its_last_run(tmp_path):
    recipe, run_dir = write_project(tmp_path), tmp_path / "run"
    first = ran(recipe, run_dir, "stages.opd.steps=6", "rows=[half-split]")
    digests = [node.digest for node in first.order]
    assert kept(run_dir, None) == kept(recipe, run_dir, overrides=first.recipe.origin.overrides) == digests
    assert (
        "stages.opd.steps=6 'rows=[half-split]'" in json.loads((run_dir / "run.json").read_text())["facts"]["command"]
    )
    with pytest.raises(UserError, match=r"stages\.opd\.steps=6"):
        kept(recipe, run_dir)
    ran(recipe, run_dir)
    assert set(digests) - set(kept(recipe, run_dir)) and kept(recipe, run_dir) == kept(run_dir, None)


def test_a_secret_among_the_overrides_is_not_kept(tmp_path):
    recipe, run_dir = write_project(tmp_path), tmp_path / "run"
    secret = "stages.student_rl.verl.+trainer.tracking_api_key=planted-secret-value-1"
    ran(recipe, run_dir, secret)
    assert "planted" not in (run_dir / "run.json").read_text()
    with pytest.raises(UserError, match="secret"):
        kept(run_dir, None)
    assert kept(recipe, run_dir, overrides=[secret])


def test_a_directory_takes_no_overrides(tmp_path, capsys):
    for command in ("report", "gc"):
        assert cli.main([command, str(tmp_path), "seeds=[1]"]) == cli.BAD_INPUT
        assert "run directory alone" in capsys.readouterr().err


def test_gc_of_a_shrunk_run_knows_that_it_was_shrunk(tmp_path):
    recipe = write_project(tmp_path, sft_teacher=None)
    for role in ("student", "teacher"):
        (tmp_path / role / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    run_dir = tmp_path / "run"
    plan = make_plan(load_recipe(recipe, shrink="cpu"), run_dir=run_dir)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, PlainProgress(), check=lambda final: (_ for _ in ()).throw(KeyboardInterrupt))
    assert kept(run_dir, None) == [node.digest for node in plan.order]
    assert "--shrink" in plan.facts()["command"]


def test_environment_variables_in_files_and_overrides(tmp_path, monkeypatch):
    monkeypatch.setenv("S2D_STEPS", "7")
    monkeypatch.setenv("S2D_PLACE", "here")
    monkeypatch.delenv("S2D_NONE", raising=False)
    path = write_project(tmp_path, stages__opd__steps="${oc.env:S2D_STEPS}")
    given = ["name=run-${oc.env:S2D_PLACE}", "data.labels=${oc.env:S2D_NONE,16}", "seeds=['${oc.env:S2D_STEPS}']"]
    recipe = load_recipe(path, given)
    assert (recipe.stages.opd.steps, recipe.name, recipe.data.labels, recipe.seeds) == (7, "run-here", 16, [7])
    assert recipe.origin.overrides == tuple(given), "recorded as they were written"
    with pytest.raises(UserError) as refused:
        load_recipe(path, ["stages.opd.verl.trainer.project_name=${oc.env:S2D_NONE}"])
    assert refused.value.key == "stages.opd.verl.trainer.project_name" and "S2D_NONE" in refused.value.remedy


def test_other_interpolations_are_left_to_verl(tmp_path):
    recipe = load_recipe(write_project(tmp_path), ["stages.opd.verl.data.custom=${data.train_batch_size}"])
    assert recipe.stages.opd.verl["data.custom"] == "${data.train_batch_size}"
