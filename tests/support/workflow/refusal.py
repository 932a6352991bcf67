"""Run a recipe that has to be refused."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import (
    FakeStages,
    write_project,
)
from verl_s2d.checks import check_plan
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan


def refuse(tmp_path, key, *words, choose=("half-split",), prepare=lambda: None, **changes) -> UserError:
    """The error of `run` for a recipe with these changes; asserts that no process was started."""
    launcher = FakeStages()
    with pytest.raises(UserError) as caught:
        recipe = write_project(tmp_path, **changes)
        prepare()
        plan = make_plan(
            load_recipe(recipe), run_dir=tmp_path / "run", rows=list(choose) if "rows" not in changes else None
        )
        run_plan(plan, PlainProgress(), launcher=launcher, check=lambda final: check_plan(plan))
    assert launcher.started == []
    error = caught.value
    assert key in error.key, error
    assert error.remedy and str(error.remedy) in str(error)
    for word in words:
        assert str(word) in str(error), error
    return error
