"""A recipe over files as people have them: checked, sliced and validated in verl's columns, digests by content."""

from __future__ import annotations

import json

import pytest

from tests.support.published_rows import LAYOUTS
from tests.support.workflow.project import write_project
from verl_s2d import arguments
from verl_s2d.checks import check_plan
from verl_s2d.data import slices
from verl_s2d.data.formats.verl_columns import is_verl
from verl_s2d.data.problems import read_problems
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

SETS = {"train": range(20), "held": range(20, 25), "validation": range(30, 34)}


SCORERS = {"gsm8k": "openai/gsm8k", "math": "DigitalLearningGmbH/MATH-lighteval"}
"""verl's names of the sets, by which it chooses a scorer: files in the hub's columns do not have them."""


def plan_of(tmp_path, rows_of, *, columns=None, labels=None, verifier="math"):
    for name, numbers in SETS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(rows_of(i)) + "\n" for i in numbers))
    recipe = write_project(
        tmp_path,
        data__train="train.jsonl",
        data__eval={"held": "held.jsonl"},
        data__validation="validation.jsonl",
        data__labels=labels,
        data__columns=columns,
        verifier=verifier,
        stages__teacher_rl__validate_every=2,
    )
    return make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])


def renamed(i):
    return {"frage": f"Was ist {i} + 1?", "antwort": f"also => {i + 1}"}


@pytest.mark.parametrize(
    ("rows_of", "columns"),
    [
        (LAYOUTS["gsm8k"], None),
        (LAYOUTS["without_ids"], None),
        (renamed, {"question": "frage", "answer": "antwort", "after": "=>"}),
    ],
)
def test_what_verl_reads_is_in_its_columns(tmp_path, rows_of, columns):
    plan = plan_of(tmp_path, rows_of, columns=columns)
    check_plan(plan)
    sliced = next(n for n in plan.order if n.kind == "slices")
    argv = sliced.stage.command(sliced, plan.context, 1).argv[3:]
    slices.write_slices(arguments.parse(argv, slices.Options))
    directory = plan.context.directory(sliced)
    for name, count in (("all", 20), ("1h", 10), ("validation", 4)):
        assert len(read_problems(directory / f"{name}.parquet")) == count
        assert is_verl(slices.read_table(directory / f"{name}.parquet"))
    teacher = next(n for n in plan.order if n.name.startswith("teacher-rl"))
    assert f"data.val_files={directory / 'validation.parquet'}" in teacher.stage.command(teacher, plan.context, 1).argv


def test_columns_and_content_are_part_of_the_digest(tmp_path):
    def digests(**changes):
        plan = plan_of(tmp_path, **changes)
        return {n.kind: n.digest for n in plan.order if n.kind in ("slices", "evaluate")}

    first = digests(rows_of=renamed, columns={"question": "frage", "answer": "antwort"})
    other = digests(rows_of=renamed, columns={"question": "frage", "answer": "antwort", "template": "dapo"})
    changed = digests(
        rows_of=lambda i: renamed(i) | {"antwort": "0"}, columns={"question": "frage", "answer": "antwort"}
    )
    for kind in ("slices", "evaluate"):
        assert len({first[kind], other[kind], changed[kind]}) == 3


def test_a_column_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="Did you mean frage") as caught:
        check_plan(plan_of(tmp_path, renamed, columns={"question": "fragen", "answer": "antwort"}))
    assert "columns.question" in caught.value.key


@pytest.mark.parametrize("verifier", ["verl", "math"])
@pytest.mark.parametrize("layout", ["gsm8k_of_verl", "math_of_verl", "gsm8k", "math"])
def test_gsm8k_and_math_take_both_verifiers_without_an_edit(tmp_path, layout, verifier):
    names = {} if layout.endswith("of_verl") or verifier == "math" else {"data_source": SCORERS[layout]}
    check_plan(plan_of(tmp_path, LAYOUTS[layout], columns=names or None, verifier=verifier))
