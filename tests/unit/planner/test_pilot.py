"""A whole pilot on simulated stages: rounds, halving, guards, budget, what is written, and outcomes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support import report_rows
from tests.support.workflow.project import Ended, SimulatedStages, write_model, write_problems, write_project
from tests.support.workflow.runs import Lines
from tests.support.workflow.simulated_runs import simulate_machine
from tests.unit.planner.world import SAMPLES, World
from verl_s2d.errors import UserError
from verl_s2d.planner.full_run import check_pilot, enter_outcomes, full_plan
from verl_s2d.planner.pilot import PilotFailed, read_pilot, run_pilot
from verl_s2d.planner.pilot_budget import PilotBudget
from verl_s2d.planner.pilot_page import calibrated, calibration_text, pilot_text
from verl_s2d.planner.pilot_plan import pilot_plan
from verl_s2d.planner.pilot_stages import PilotScores, Transfer
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.pilot_plots import pilot_plots
from verl_s2d.report.row_results import RowResult
from verl_s2d.report.write import Facts, build_report
from verl_s2d.workflow.runner import run_plan
from verl_s2d.workflow.store.run_directory import evaluations

PROBLEMS, TRAVEL = 400, {"1": 0.0, "2": 0.05, "3": 0.1, "4": 0.2, "5": 0.3}
PLANNER = {"problems": 4, "samples": 2, "pilot": {"smallest": 4, "rounds": 2, "updates": 4, "evaluate_every": 2}}


@pytest.fixture(autouse=True)
def _simulated(monkeypatch):
    simulate_machine(monkeypatch)


class Planted(SimulatedStages):
    """Plays stages, with accuracies by the name of the node that scores."""

    def __init__(self, accuracies: dict[str, float]):
        super().__init__()
        self.plans, self.accuracies, self.world, self.names = [], accuracies, World(0, PROBLEMS), []

    def build(self, plan) -> bool:
        self.plans.append(plan)
        return run_plan(plan, Lines(), launcher=self) == []

    def start(self, argv, env, cwd, log):
        (node,) = [n for n in self.plans[-1].order if n.label == Path(cwd).name][:1] or [None]
        if node is not None:
            self.names.append(node.name)
        if node is None or not isinstance(node.stage, PilotScores):
            logged = {"transfer": {step: {"s2d/travel": d} for step, d in TRAVEL.items()}}
            return super().start(argv, {**env, "FAKE_METRICS": json.dumps(logged)}, cwd, log)
        right = self.world.right([self.accuracies[node.name]])[0]
        problems = [{"id": str(i), "correct": round(SAMPLES * r), "samples": SAMPLES} for i, r in enumerate(right)]
        told = {"avg": right.mean(), "stderr": 0.01, "mean_tokens": 2.0}
        result = {"sets": {"2h": told}, "per_problem": {"2h": problems}}
        (Path(cwd) / "result.json").write_text(json.dumps(result))
        (Path(cwd) / "generations.parquet").write_bytes(b"parquet")
        return Ended(0)


def accuracies(**roles) -> dict[str, float]:
    """Name scoring nodes and their accuracy: role=(start, after 4 labels, after 8), then what a teacher transfers."""
    found = {}
    for role, (start, first, second, *taught) in roles.items():
        found |= {f"scores-{role}": start, f"scores-{role}-4": first, f"scores-{role}-8": second}
        cold = roles["student"][0]
        for labels, end in zip((4, 8), taught, strict=False):
            for step, travel in ((2, 0.1), (4, 0.3)):
                found[f"scores-opd-{role}-{labels}-step-{step}"] = cold + (end - cold) * travel / 0.3
    return found


STUDENT, GOOD, WEAK, HARMFUL = (
    (0.3, 0.32, 0.34),
    (0.5, 0.6, 0.7, 0.5, 0.6),
    (0.1, 0.1, 0.1),
    (0.4, 0.42, 0.44, 0.15, 0.1),
)


def made(tmp_path, planner=PLANNER, **changes):
    models = {"teacher_b": "small"} if "teacher_b" in planner.get("teachers", ("teacher_b",)) else {}
    write_model(tmp_path / "small", weight=b"s")
    path = write_project(tmp_path, models=models, planner=planner, **changes)
    return pilot_plan(load_recipe(path), run_dir=tmp_path / "runs" / "tiny")


def test_a_pilot_from_start_to_outcome(tmp_path):
    """Both teachers are piloted; the candidates' rows run later, and their outcomes are laid beside."""
    pilot = made(tmp_path)
    planted = Planted(accuracies(student=STUDENT, teacher=GOOD, teacher_b=HARMFUL))
    full = full_plan(pilot)
    result = run_pilot(pilot, lambda: {"direct-grpo": {"sampled_tokens": 7}}, planted.build, print)
    assert [r["labels"] for r in result["rounds"]] == [4, 8]
    names = {entry["name"]: entry for entry in result["candidates"]}
    assert list(names) == [
        *("direct-grpo", "full-bridge", "full-bridge-teacher_b", "half-split", "half-split-teacher_b")
    ]
    assert names["full-bridge-teacher_b"]["accuracy"] < 0.3 < names["full-bridge"]["accuracy"]
    assert result["best"] in ("full-bridge", "half-split")
    assert result["transfers"][0]["travel"] == [0.0, 0.1, 0.3]
    assert names["direct-grpo"]["cost"] == {"sampled_tokens": 7}
    assert result["spent"]["sampled_tokens"] > 0 and result["spent"]["labels"] > 0
    assert read_pilot(pilot.context.run_dir) == result
    page = pilot_text(result, pilot.context.run_dir)
    assert f"Verdict: {result['verdict']}." in page and "Predictions and outcomes" not in page
    kept = evaluations(pilot.context.run_dir)
    assert {path.name for path in (pilot.context.run_dir / "stages").iterdir()} <= set(kept), "gc keeps them"
    before = len(planted.names)
    again = run_pilot(made(tmp_path), lambda: {"direct-grpo": {"sampled_tokens": 7}}, planted.build, print)
    assert again == result and len(planted.names) == before, "nothing is built twice"

    planted.build(full)
    result = enter_outcomes(result, pilot, full, planted.build)
    outcomes = {entry["name"]: entry["outcome"] for entry in result["candidates"]}
    assert outcomes["direct-grpo"] == {
        "accuracy": pytest.approx(0.4),
        "stderr": pytest.approx(np.std([0, 0.5, 1, 0, 0.5], ddof=1) / 5**0.5),
        "measured_on": "evaluation",
    }
    (pilot.context.run_dir / "pilot.json").write_text(json.dumps(result))
    found = {entry["name"]: entry for entry in calibrated(pilot.context.run_dir)}
    entry = found["direct-grpo"]
    assert entry["error"] == pytest.approx(names["direct-grpo"]["accuracy"] - 0.4)
    assert entry["inside"] == (entry["low"] <= 0.4 <= entry["high"])
    assert f"of {len(found)} outcomes are inside" in calibration_text(pilot.context.run_dir)
    curves, transfers, predictions = pilot_plots(result)
    fit = result["curves"]["student"]["fit"]
    assert fit["labels"][0] == pytest.approx(4) and fit["labels"][-1] == pytest.approx(16)
    # The law at all labels is what direct GRPO is predicted to reach.
    assert fit["accuracy"][-1] == pytest.approx(names["direct-grpo"]["accuracy"])
    assert fit["low"][-1] == pytest.approx(names["direct-grpo"]["low"])
    assert "opd from teacher after 8 labels" in transfers.about and "outcome 40.0" in predictions.about
    assert all(plot.svg().startswith("<?xml") for plot in (curves, transfers, predictions))
    row = RowResult("direct-grpo", 0, report_rows.result(0, 2, 4), report_rows.ledger())
    report = build_report([row], Facts(pilot=result))
    assert f"Verdict: {result['verdict']}." in report_rows.markdown_of(report)
    assert "plots/pilot-curves.svg" in report.files


def test_a_curve_that_no_law_fits_is_drawn_without_one(tmp_path):
    fallen = (0.3, 0.34, 0.28)
    planted = Planted(accuracies(student=fallen, teacher=GOOD, teacher_b=GOOD))
    result = run_pilot(made(tmp_path), dict, planted.build, print)
    assert result["curves"]["student"]["fit"] is None
    curves, *_ = pilot_plots(result)
    assert "(no fit)" in curves.about and "student: no fit" in curves.svg()


def test_models_go_on_with_labels_that_they_have_not_read(tmp_path):
    pilot = made(tmp_path)
    first = pilot.round(0, ["student"], [])
    second = pilot.round(1, ["student"], [("opd", "teacher")])
    early, late = (made.scores["student"].inputs["model"] for made in (first, second))
    assert late.inputs["model"] is early
    assert (early.settings["slice"], early.inputs["slices"].settings["labels"]) == ("all", 4)
    assert (late.settings["slice"], late.inputs["slices"].settings["labels"]) == ("2h", 8)
    assert early.settings["steps"] + late.settings["steps"] == 2, "4 steps for 16 labels"
    scored = second.scores["student"]
    assert (scored.settings["slice"], scored.inputs["slices"].settings["labels"]) == ("2h", 16)
    (transfer,) = second.transfers
    assert isinstance(transfer.node.stage, Transfer) and transfer.node.settings["steps"] == 5
    assert transfer.node.operations["travel"] and transfer.node.operations["save_every"] == 2


def test_a_hopeless_teacher_gets_no_second_round(tmp_path):
    """Three rounds: after the second, the intervals of one teacher's candidates end below the best."""
    planner = PLANNER | {"pilot": {"smallest": 8, "rounds": 3, "updates": 4, "evaluate_every": 2}}
    values = accuracies(student=STUDENT, teacher=GOOD, teacher_b=HARMFUL)
    values |= {name.replace("-4", "-2", 1): value for name, value in values.items() if "-4" in name}
    pilot = made(tmp_path, planner, stages__teacher_rl__verl={}, stages__student_rl__verl={})
    planted = Planted(values | {"scores-student-8": 0.36, "scores-teacher-8": 0.75})
    lines = []
    result = run_pilot(pilot, dict, planted.build, lines.append)
    assert result["rounds"][1]["roles"] == ["student", "teacher", "teacher_b"]
    assert "teacher_b" not in result["rounds"][2]["roles"]
    assert any(line.startswith("pilot: no more pilot for full-bridge-teacher_b") for line in lines)


def test_a_weaker_teacher_gets_no_pilot(tmp_path):
    planted = Planted(accuracies(student=STUDENT, teacher=GOOD, teacher_b=WEAK))
    result = run_pilot(made(tmp_path), dict, planted.build, print)
    assert all("teacher_b" not in r["roles"] for r in result["rounds"])
    assert any("`delta`" in warning for warning in result["warnings"])
    (entry,) = [e for e in result["candidates"] if e["name"] == "full-bridge-teacher_b"]
    assert entry["dropped"] == "its teacher is weaker than the student"
    assert "teacher_b" in pilot_text(result, tmp_path / "runs" / "tiny")


def test_every_teacher_is_weaker(tmp_path):
    """Direct GRPO is what is left, and a pilot of it alone would decide nothing."""
    planted = Planted(accuracies(student=(0.6, 0.6, 0.6), teacher=WEAK, teacher_b=WEAK))
    result = run_pilot(made(tmp_path), dict, planted.build, print)
    assert result["rounds"] == [] and result["best"] == "direct-grpo"


def test_a_budget_ends_the_pilot(tmp_path):
    planted = Planted(accuracies(student=STUDENT, teacher=GOOD, teacher_b=HARMFUL))
    result = run_pilot(made(tmp_path), dict, planted.build, print, PilotBudget(25_000))
    assert [r["labels"] for r in result["rounds"]] == [4]
    assert any("may take" in warning for warning in result["warnings"])
    assert result["best"] is None and "no prediction" in result["verdict"]


def test_a_failed_stage_ends_the_pilot(tmp_path):
    with pytest.raises(PilotFailed):
        run_pilot(made(tmp_path), dict, lambda plan: False, print)


def test_validation_problems_are_used_where_there_are_some(tmp_path):
    write_problems(tmp_path / "validation.parquet", range(6), prefix="valid")
    pilot = made(tmp_path, data__validation="validation.parquet")
    node = pilot.start()["student"]
    assert node.settings["validation"] is True and "validation" in node.externals
    assert node.stage.sets(node, pilot.context) == {"validation": tmp_path / "validation.parquet"}


def test_exopd_is_a_candidate_where_it_is_asked_for(tmp_path):
    chosen = PLANNER["pilot"] | {"candidates": ["full-bridge", "exopd"]}
    pilot = made(tmp_path, PLANNER | {"pilot": chosen, "teachers": ["teacher"]})
    names = [(c.name, c.transfer) for c in pilot.candidates(pilot.teachers)]
    assert names == [("full-bridge", "opd"), ("exopd", "exopd")]
    made_round = pilot.round(0, ["teacher"], [("exopd", "teacher")])
    assert made_round.transfers[0].node.settings["signal"]["type"] == "exopd"
    assert "base" in made_round.transfers[0].node.externals


@pytest.mark.parametrize(
    ("text", "amount", "hours"), [("5M", 5e6, False), ("2.5h", 2.5, True), ("30000", 3e4, False), ("1e6", 1e6, False)]
)
def test_budgets(text, amount, hours):
    assert PilotBudget.read(text) == PilotBudget(amount, hours)


@pytest.mark.parametrize("text", ["", "h", "-1h", "0", "5 M", "5d"])
def test_no_budget(text):
    with pytest.raises(UserError, match="Not a budget"):
        PilotBudget.read(text)


@pytest.mark.parametrize(
    ("pilot", "key", "words"),
    [
        ({"smallest": 16, "rounds": 2}, "planner.pilot.smallest", ["1 of 16 labels", "At most 8"]),
        ({"smallest": 8, "rounds": 2}, "planner.pilot.smallest", ["batch", "At most 4"]),
        ({"smallest": 4, "rounds": 3}, "planner.pilot.rounds", ["more than half"]),
        ({"updates": 30, "evaluate_every": 4}, "planner.pilot.updates", ["multiple of evaluate_every"]),
        ({"candidates": ["direct-grpo"] * 2}, "planner.pilot.candidates", ["twice"]),
        ({"candidates": ["mopd"]}, "planner.pilot.candidates[0]", ["direct-grpo"]),
    ],
)
def test_a_pilot_that_cannot_be(tmp_path, pilot, key, words):
    with pytest.raises(UserError) as caught:
        made(tmp_path, {"problems": 4, "pilot": pilot})
    assert caught.value.key == key and all(word in str(caught.value) for word in words), str(caught.value)


def test_a_pilot_has_one_seed(tmp_path):
    path = write_project(tmp_path, planner=PLANNER)
    with pytest.raises(UserError, match="one seed"):
        pilot_plan(load_recipe(path), seeds=[0, 1])


def test_check_refuses_what_the_pilot_would(tmp_path):
    path = write_project(tmp_path, planner=PLANNER)
    assert check_pilot(load_recipe(path)).ok
    refused = check_pilot(load_recipe(path, ["planner.pilot.smallest=16"]))
    assert refused.bad_input and "planner.pilot.smallest" in refused.detail
    no_warmup = check_pilot(load_recipe(path, ["stages.warmup=null"]))
    assert no_warmup.bad_input and "stages.warmup" in no_warmup.detail


def test_a_pilot_has_its_own_ends(tmp_path):
    """Rules and validations of the full stages are not the pilot's: its rounds compare models after equal steps."""
    pilot = made(tmp_path, stages__opd__until={"travel": 0.2}, stages__student_rl__until={"sampled_tokens": 8})
    (transfer,) = pilot.round(0, ["student"], [("opd", "teacher")]).transfers
    assert "until" not in transfer.node.settings and transfer.node.settings["steps"] == 5
    assert "until" not in pilot.round(1, ["student"], []).scores["student"].inputs["model"].settings
