"""The flow of rows: from the manifests of a run of every kind of stage, and its accuracies by hand."""

from __future__ import annotations

import pytest

from tests.support.report_rows import ledger, markdown_of, result
from tests.support.workflow.project import SimulatedStages, write_project
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.by_row.flow import flow_line
from verl_s2d.report.inputs import finished_rows, found_rows
from verl_s2d.report.write import RowResult, build_report
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan

ROWS = [
    "cold-student",
    "direct-grpo",
    "half-split",
    "held-out-upstream",
    "raw-teacher",
    "self-teacher",
    "teacher-rl-1h",
]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    directory = tmp_path_factory.mktemp("flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        made = make_plan(load_recipe(write_project(directory)), run_dir=directory / "run", rows=ROWS)
        assert not run_plan(made, PlainProgress(), launcher=SimulatedStages())
    return made


def test_who_learns_in_which_stage_from_which_labels(plan):
    report = build_report(finished_rows(plan))
    lines = {row["name"]: flow_line(row["flow"], "no set") for row in report.data["rows"]}
    assert lines == {
        "cold-student": "S: not trained",
        "direct-grpo": "S: RL(all)",
        "half-split": "T: RL(1h) | S: 2a > 2b > RL(2h)",
        "held-out-upstream": "T: RL(1h) > RL(2h) | S: 2a > 2b",
        "raw-teacher": "T: not trained | S: 2a > 2b",
        "self-teacher": "T: RL(all) | S: 2a > 2b",
        "teacher-rl-1h": "T: RL(1h)",
    }
    teacher, student = next(row["flow"] for row in report.data["rows"] if row["name"] == "half-split")
    assert (teacher["start"], student["start"]) == ("teacher", "student")
    # Four steps that call the verifier once each, on a label each; 2.5 tokens for each of 4 prompts x 2 rollouts.
    (spent,) = ({k: step[k] for k in ("labels", "verifier_calls", "sampled_tokens")} for step in teacher["steps"])
    assert spent == {"labels": 4, "verifier_calls": 4, "sampled_tokens": 80}
    warmup, opd, _ = student["steps"]
    # The 100 tokens of the rollouts that the warmup reads are its own.
    assert (warmup["labels"], warmup["sampled_tokens"], warmup["teacher_scored_tokens"]) == (0, 100, 28)
    assert (opd["labels"], opd["verifier_calls"], opd["sampled_tokens"]) == (0, 0, 20)


def test_the_directory_alone_tells_the_same(plan):
    by_name = {row["name"]: row["flow"] for row in build_report(finished_rows(plan)).data["rows"]}
    assert {row["name"]: row["flow"] for row in build_report(found_rows(plan.context.run_dir)).data["rows"]} == by_name


def test_a_row_is_told_below_its_line(plan):
    text = build_report(finished_rows(plan)).table()
    place = next(n for n, line in enumerate(text.split("\n")) if line.startswith("half-split "))
    assert text.split("\n")[place + 1] == "  T: RL(1h) 50.0 | S: 50.0 > 2a > 2b > RL(2h) 50.0"


def chained(digest: str, model: str, symbol: str, **more) -> dict:
    spent = {"labels": 2, "verifier_calls": 10, "sampled_tokens": 100, "teacher_scored_tokens": 0} | more.pop(
        "spent", {}
    )
    return {
        **{"kind": "grpo", "name": digest, "digest": digest, "seconds": 60.0, "updates": 1, "model": model},
        **{"symbol": symbol, "teachers": {}, "spent": spent, **more},
    }


def evaluation(model: str, digest: str) -> dict:
    return chained(digest, model, "") | {"kind": "evaluate"}


def test_accuracies_are_those_of_rows_that_end_in_the_model_and_numbers_are_means_over_seeds():
    rows = []
    for seed, right in ((0, 1), (1, 3)):
        rl = chained(f"rl{seed}", "student", "RL(all)", spent={"verifier_calls": 10 + 20 * seed})
        rows.append(RowResult("cold", seed, result(0, 2), ledger(), [evaluation("student", f"c{seed}")]))
        rows.append(RowResult("direct", seed, result(right, 4), ledger(), [rl, evaluation(rl["digest"], f"d{seed}")]))
    report = build_report(rows)
    (lane,) = report.data["rows"][1]["flow"]
    # cold: 1/4 in both seeds; direct: 5/8 and 7/8.
    assert lane["start_accuracy"] == {"eval": 0.25} and lane["steps"][0]["accuracy"] == {"eval": 0.75}
    assert lane["steps"][0]["verifier_calls"] == 20
    assert "- direct: S: 25.0 &gt; RL(all) 75.0" in markdown_of(report)


def test_rows_of_earlier_versions_have_no_flow():
    report = build_report([RowResult("x", 0, result(1, 2), ledger())])
    assert report.data["rows"][0]["flow"] == [] and "Flow" not in markdown_of(report)
