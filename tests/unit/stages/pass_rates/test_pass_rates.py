"""Pass rates and the problem weights made of them: the nodes, the ledger, the file, and what is refused."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import FakeStages, write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.pass_rates.stage import PassRates
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.shared.problem_weights import MeasuredWeights
from verl_s2d.workflow.graph import ancestors
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan
from verl_s2d.workflow.store.manifest import read_manifest

WEIGHTED = {"stages__warmup__problem_weights": {}, "stages__opd__problem_weights": {"a": 2.0, "b": 0.5}}


def plan_of(tmp_path, rows=("full-bridge",), **changes):
    return make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=list(rows))


def node(plan, name):
    return next(n for n in plan.order if n.name == name)


def test_each_stage_has_the_rates_of_the_model_that_it_trains(tmp_path):
    plan = plan_of(tmp_path, ["full-bridge", "paced"], **WEIGHTED)
    warmup, opd = node(plan, "warmup-all"), node(plan, "opd-all")
    for stage, kind in ((warmup, "warmup"), (opd, "opd")):
        rates = stage.inputs["pass_rates"]
        assert rates.name == f"pass-rates-all-{kind}" and isinstance(rates.stage, PassRates)
        assert rates.sources["model"] == stage.sources["model"]
        assert rates.settings["slice"] == "all" and rates.settings["samples"] == 8
        assert rates.stage.sequences(rates, 16) == 128
        told = dict(a.lstrip("+").split("=", 1) for a in stage.stage.command(stage, plan.context, 1).argv[3:])
        assert told["s2d.problem_weights.path"] == str(plan.context.directory(rates) / "pass_rates.json")
    assert opd.settings["problem_weights"] == {"a": 2.0, "b": 0.5}
    # The row's weights are the defaults, as those of this recipe's warmup are.
    assert node(plan, "opd-all-paced").settings["problem_weights"] == {"a": 1.0, "b": 1.0}
    assert node(plan, "opd-all-paced").inputs["model"].digest == warmup.digest


def test_the_row_paced_is_full_bridge_with_weights_at_the_same_steps(tmp_path):
    """The switch from forward to reverse KL keeps the total of steps."""
    plan = plan_of(tmp_path, ["full-bridge", "paced"])
    for kind in ("warmup", "opd"):
        plain, paced = node(plan, f"{kind}-all"), node(plan, f"{kind}-all-paced")
        assert paced.settings == plain.settings | {"problem_weights": {"a": 1.0, "b": 1.0}}
        assert paced.inputs.keys() - plain.inputs.keys() == {"pass_rates"}
    of_paced = [n for n in ancestors(plan.rows[1].target) if n.kind == "pass_rates"]
    assert len(of_paced) == 2, "measured again on the warmed student"


def test_the_exponents_change_no_rates(tmp_path):
    one = plan_of(tmp_path, stages__opd__problem_weights={})
    other = plan_of(tmp_path, stages__opd__problem_weights={"a": 2.0})
    before, after = (node(plan, "opd-all") for plan in (one, other))
    assert before.inputs["pass_rates"].digest == after.inputs["pass_rates"].digest and before.digest != after.digest


def test_labels_and_calls_are_booked_once_where_the_rates_are_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    plan = plan_of(tmp_path, **WEIGHTED, stages__pass_rates={"samples": 2})
    assert run_plan(plan, PlainProgress(), launcher=FakeStages(), check=lambda final: None) == []
    for name in ("pass-rates-all-warmup", "pass-rates-all-opd"):
        directory = plan.context.directory(node(plan, name))
        ledger = read_manifest(directory)["ledger"]
        rates = json.loads((directory / "pass_rates.json").read_text())
        # The stand-in for the sampler scores five problems twice, of three tokens each.
        assert ledger["labels_read"] == sorted(rates) and len(rates) == 5
        assert (ledger["verifier_calls"], ledger["sampled_tokens"]) == (10, 30)
        assert rates["held-1"] == 0.5 and rates["held-2"] == 1
    for name in ("warmup-all", "opd-all"):
        ledger = read_manifest(plan.context.directory(node(plan, name)))["ledger"]
        assert ledger["labels_read"] == [] and ledger["verifier_calls"] == 0


def test_a_sample_without_a_verdict_is_not_wrong(tmp_path):
    plan = plan_of(tmp_path, stages__opd__problem_weights={})
    rates = node(plan, "pass-rates-all-opd")
    problems = [{"id": "a", "correct": 3, "samples": 8, "unsettled": 2}, {"id": "b", "correct": 0, "samples": 8}]
    problems.append({"id": "c", "correct": 0, "samples": 8, "unsettled": 8})
    result = {"sets": {"all": {"avg": 0.2, "stderr": 0.1, "mean_tokens": 2.5}}, "per_problem": {"all": problems}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "generations.parquet").touch()
    rates.stage.finalize(rates, tmp_path)
    assert json.loads((tmp_path / "pass_rates.json").read_text()) == {"a": 0.5, "b": 0, "c": 0}
    ledger = rates.stage.ledger(rates, tmp_path, 1.0)
    assert (ledger["verifier_calls"], ledger["unsettled_calls"], ledger["sampled_tokens"]) == (24, 10, 60)


def test_rates_that_weigh_nothing_are_refused_once_they_are_measured_and_before_training(tmp_path):
    plan = plan_of(tmp_path, stages__opd__problem_weights={}, stages__warmup__problem_weights={"a": 0.0})
    for name, stage in (("pass-rates-all-opd", "opd-all"), ("pass-rates-all-warmup", "warmup-all")):
        rates, trained = node(plan, name), node(plan, stage)
        trained.stage.command(trained, plan.context, 1)
        file = plan.context.directory(rates) / "pass_rates.json"
        file.parent.mkdir(parents=True)
        file.write_text('{"a": 0.0, "b": 1.0}')
    with pytest.raises(UserError, match="All 2 problems weigh nothing") as refused:
        trained = node(plan, "opd-all")
        trained.stage.command(trained, plan.context, 1)
    assert refused.value.key == "stages.opd.problem_weights" and "samples" in refused.value.remedy
    # Without the factor p^a the problem that is never solved weighs the most.
    trained = node(plan, "warmup-all")
    trained.stage.command(trained, plan.context, 1)


def test_labels_of_a_row_with_weights_are_its_whole_slice(tmp_path):
    """The teacher reads 8 of the 16 problems in two steps; the pass rates read all."""
    matched = {"m": {"row": "direct-grpo", "to": "full-bridge", "by": "labels"}}
    changes = {"stages__teacher_rl__steps": 2, "matched": matched}
    plain = plan_of(tmp_path, ["m"], **changes)
    weighted = plan_of(tmp_path, ["m"], **changes, stages__opd__problem_weights={})
    budgets = [p.rows[0].target.inputs["model"].settings["matched"]["budget"] for p in (plain, weighted)]
    assert budgets == [8, 16]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"stages__opd__problem_weights": {"a": 0, "b": 0}}, "stages.opd.problem_weights.a"),
        ({"stages__warmup__problem_weights": {"b": -1}}, "stages.warmup.problem_weights.b"),
        ({"stages__opd__problem_weights": {"samples": 8}}, "stages.opd.problem_weights.samples"),
        ({"stages__pass_rates": {"samples": 1}}, "stages.pass_rates.samples"),
        ({"stages__student_rl__problem_weights": {}}, "stages.student_rl.problem_weights"),
        ({"stages__opd__prefix": {"start": 4, "grow": 1}}, "stages.opd.prefix.start"),
        (
            {"stages__opd__prefix": {"start": 2, "grow": 1}, "stages__opd__response_tokens": 2},
            "stages.opd.prefix.start",
        ),
        ({"stages__opd__prefix": {"start": 2, "grow": 0}}, "stages.opd.prefix.grow"),
        ({"stages__opd__prefix": {"start": 2}}, "stages.opd.prefix.grow"),
        ({"stages__warmup__prefix": {"start": 2, "grow": 1}}, "stages.warmup.prefix"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path, changes, key):
    with pytest.raises(UserError) as refused:
        plan_of(tmp_path, **changes)
    assert refused.value.key == key and refused.value.remedy


def weights(tmp_path, content, problems=(), **exponents):
    file = tmp_path / "pass_rates.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return MeasuredWeights(path=str(file), **exponents).of(problems, key="data.train_files")


def test_weights_are_normalised_over_the_slice_whatever_is_trained_on(tmp_path):
    rates = {str(i): i / 8 for i in range(9)}
    found = weights(tmp_path, rates, problems=[3, 4])
    raw = {i: p * (1 - p) for i, p in rates.items()}
    assert found == pytest.approx({i: 9 * w / sum(raw.values()) for i, w in raw.items()})
    assert sum(found.values()) == pytest.approx(len(rates)) and found["0"] == found["8"] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": 0.0, "b": 1.0}, "solved always or never"),
        ({"a": 1.5}, "cannot be read"),
        ({"a": None}, "cannot be read"),
        ([0.5], "cannot be read"),
        ("{", "cannot be read"),
        ({}, "weigh nothing"),
        ({"b": 0.5}, "1 problems of data.train_files have no pass rate, for example a"),
    ],
)
def test_a_file_that_makes_no_weights_is_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=words) as refused:
        weights(tmp_path, content, problems=["a"])
    assert refused.value.key == "s2d.problem_weights.path" and refused.value.remedy


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read") as refused:
        MeasuredWeights(path=str(tmp_path / "none.json")).of([], key="data.train_files")
    assert refused.value.value == str(tmp_path / "none.json")
