"""`verl-s2d init quickstart`: a recipe of the project where the user works, from a clone and from a built package."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from verl_s2d import cli
from verl_s2d.recipe.load import load_recipe
from verl_s2d.starter.project_recipes import project_recipes


def test_those_of_the_clone_are_known():
    assert project_recipes().keys() == {path.parent.name for path in ROOT.glob("recipes/*/*.yaml")}


@pytest.mark.parametrize("name", project_recipes())
def test_a_copy_loads_with_every_file_that_it_names(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", name]) == 0
    assert f"recipes/{name}/" in capsys.readouterr().out
    for path in (tmp_path / "recipes" / name).glob("*.yaml"):
        recipe = load_recipe(path)
        made = [source for source in (recipe.data.source, *recipe.models.values()) if source is not None]
        files = [file for source in made if source.script for file in (source.script, *source.uses)]
        assert all((path.parent / file).is_file() for file in files)
    assert (tmp_path / "recipes" / "recipe.schema.json").is_file()


def test_what_is_there_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "recipes" / "quickstart"
    mine.mkdir(parents=True)
    assert cli.main(["init", "quickstart"]) == 2 and not list(mine.iterdir())
    assert cli.main(["init", "planner"]) == 0 and not list(mine.iterdir()), "whose scripts the planner runs"
    assert cli.main(["init", "qwickstart"]) == 2 and "Did you mean quickstart?" in capsys.readouterr().err


def test_half_of_the_options_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["init", str(tmp_path / "mine"), "--student", "s"])
    assert end.value.code == 2 and "--teacher, --data" in capsys.readouterr().err


def test_a_built_package_has_them(tmp_path):
    """The step of setup.py that makes a wheel's files; the wheel itself would need pip's isolated build."""
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build",
            "--build-base",
            str(tmp_path),
            "--build-lib",
            str(tmp_path / "lib"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    package = tmp_path / "lib" / "verl_s2d"
    assert (package / "recipes" / "quickstart" / "quickstart.yaml").is_file()
    assert (package / "recipes" / "recipe.schema.json").is_file() and (package / "py.typed").is_file()
    code = "from verl_s2d.starter.project_recipes import project_recipes as p; print(p()['quickstart'])"
    said = subprocess.run([sys.executable, "-c", code], cwd=package.parent, capture_output=True, text=True, timeout=120)
    assert said.stdout.strip() == str(package / "recipes" / "quickstart"), said.stderr[-2000:]
