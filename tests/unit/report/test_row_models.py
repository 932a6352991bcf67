"""Links to the models of rows, and copies of them."""

from __future__ import annotations

import shutil

import pytest

from tests.support.workflow.damage import flip
from tests.support.workflow.project import SimulatedStages, write_project
from verl_s2d import cli
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.by_row.row_models import export_model, link_models
from verl_s2d.report.inputs import finished_rows
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A recipe that has been run with two seeds."""
    directory = tmp_path_factory.mktemp("models")
    recipe = write_project(directory, rows=["cold-student", "direct-grpo", "teacher"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        plan = make_plan(load_recipe(recipe), run_dir=directory / "run", seeds=[0, 1])
        assert not run_plan(plan, PlainProgress(), launcher=SimulatedStages())
    return recipe, directory / "run"


def rows_of(recipe, run_dir, seeds=(0,)):
    return finished_rows(make_plan(load_recipe(recipe), run_dir=run_dir, seeds=list(seeds)))


def test_each_row_has_a_link_that_moves_with_the_run(project, tmp_path):
    recipe, made = project
    run_dir = tmp_path / "run"
    shutil.copytree(made, run_dir, symlinks=True)
    rows = rows_of(recipe, run_dir)
    links = link_models(rows, run_dir)
    assert links == {name: [f"models/{name}"] for name in ("cold-student", "direct-grpo", "teacher")}
    trained = run_dir / "models/direct-grpo"
    assert trained.resolve().parent.parent == run_dir / "stages" and (trained / "model.safetensors").is_file()
    assert (run_dir / "models/teacher").resolve() == recipe.parent / "teacher"
    moved = tmp_path / "moved"
    run_dir.rename(moved)
    assert (moved / "models/direct-grpo").resolve().parent.parent == moved / "stages"


def test_seeds_have_links_of_their_own_and_dead_ones_go(project, tmp_path):
    recipe, made = project
    run_dir = tmp_path / "run"
    shutil.copytree(made, run_dir, symlinks=True)
    rows = rows_of(recipe, run_dir, (0, 1))
    assert link_models(rows, run_dir)["direct-grpo"] == ["models/direct-grpo-seed-0", "models/direct-grpo-seed-1"]
    first = (run_dir / "models/direct-grpo-seed-0").resolve()
    assert first != (run_dir / "models/direct-grpo-seed-1").resolve()
    (run_dir / "models/notes.txt").write_text("mine")
    shutil.rmtree(first.parent)
    links = link_models([row for row in rows if row.seed == 1], run_dir)
    assert links["direct-grpo"] == ["models/direct-grpo"]
    assert not (run_dir / "models/direct-grpo-seed-0").is_symlink() and (run_dir / "models/notes.txt").is_file()


@pytest.mark.parametrize("what", ["directory", "file", "no links", "no folder"])
def test_a_model_that_cannot_be_linked_is_named_by_its_own_directory(project, tmp_path, monkeypatch, what):
    """A copy of a run may have directories in place of links, and some file systems have no links."""
    recipe, made = project
    run_dir = tmp_path / "run"
    shutil.copytree(made, run_dir, symlinks=True)
    shutil.rmtree(run_dir / "models", ignore_errors=True)
    if what == "directory":
        link_models(rows_of(recipe, run_dir), run_dir)
        shutil.copytree(run_dir, tmp_path / "copy")
        run_dir = tmp_path / "copy"
    elif what == "file":
        (run_dir / "models").mkdir()
        for name in ("cold-student", "direct-grpo", "teacher"):
            (run_dir / "models" / name).write_text("mine")
    elif what == "no folder":
        (run_dir / "models").write_text("mine")
    else:
        monkeypatch.setattr("pathlib.Path.symlink_to", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    rows = rows_of(recipe, run_dir)
    links = link_models(rows, run_dir)
    (trained,) = links["direct-grpo"]
    assert trained.startswith("stages/") and (run_dir / trained / "model.safetensors").is_file()
    assert links["teacher"] == [str(recipe.parent / "teacher")]
    assert cli.main(["report", str(run_dir), "--seeds", "0"]) == 0 and (run_dir / "report.html").is_file()


def test_the_end_of_a_report_names_the_model_and_how_to_serve_it(project, capsys, monkeypatch):
    recipe, run_dir = project
    monkeypatch.chdir(recipe.parent)
    assert cli.main(["report", str(run_dir), "--seeds", "0"]) == 0
    out = capsys.readouterr().out
    assert "model of direct-grpo: run/models/direct-grpo (other rows beside it)" in out
    assert "serve it: vllm serve run/models/direct-grpo" in out
    assert "Its model is models/direct-grpo" in (run_dir / "report.html").read_text()


def test_an_export_is_a_whole_copy(project, tmp_path, capsys):
    recipe, run_dir = project
    out = tmp_path / "new" / "out"
    assert cli.main(["export", str(run_dir), "direct-grpo", str(out), "--seed", "1"]) == 0
    assert f"vllm serve {out}" in capsys.readouterr().out
    kept = next(run_dir.glob("stages/grpo-*/model/model.safetensors"))
    assert (out / "model.safetensors").read_bytes() == kept.read_bytes() and (out / "tokenizer.json").is_file()
    assert not any(path.is_symlink() for path in out.rglob("*")) and [p.name for p in out.parent.iterdir()] == ["out"]
    out = tmp_path / "by-recipe"
    words = ["export", str(recipe), "direct-grpo", str(out), "--seed", "0", "--run-dir", str(run_dir)]
    assert cli.main(words) == 0 and (out / "config.json").is_file()


def test_an_export_is_refused(project, tmp_path, capsys):
    recipe, made = project
    run_dir = tmp_path / "run"
    shutil.copytree(made, run_dir, symlinks=True)
    assert cli.main(["export", str(run_dir), "direct-grpo", str(tmp_path / "out")]) == 2
    assert "--seed" in capsys.readouterr().err
    assert cli.main(["export", str(run_dir), "half-split", str(tmp_path / "out"), "--seed", "0"]) == 2
    assert "Finished rows: cold-student, direct-grpo, teacher" in capsys.readouterr().err
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    rows = rows_of(recipe, run_dir)
    with pytest.raises(UserError, match="not empty"):
        export_model(rows, "direct-grpo", full)
    for weights in run_dir.glob("stages/grpo-*/model/model.safetensors"):
        flip(weights)
    with pytest.raises(UserError, match="damaged"):
        export_model(rows, "direct-grpo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for model in run_dir.glob("stages/grpo-*/model"):
        shutil.rmtree(model)
    with pytest.raises(UserError, match="no model of its own"):
        export_model(rows, "direct-grpo", tmp_path / "out")
