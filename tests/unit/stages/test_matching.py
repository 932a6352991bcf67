"""Rows that stop where another row ended: what they ask for, how they end, and which cannot be matched."""

from __future__ import annotations

import json

import pytest

from tests.support.report_rows import markdown_of
from tests.support.workflow.project import FakeStages, settings, write_project, write_scripts
from tests.support.workflow.refusal import refuse
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.inputs import finished_rows, found_rows, report_of
from verl_s2d.report.write import Facts
from verl_s2d.stages import stages
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import ancestors, lineage
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan

VERL = settings()["stages"]["student_rl"]["verl"]


@pytest.fixture(autouse=True)
def _no_real_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)


def plan_of(tmp_path, by, row="direct-grpo", to="half-split", rows=("m",), **changes):
    matched = {"m": {"row": row, "to": to, "by": by}}
    recipe = load_recipe(write_project(tmp_path, matched=matched, **changes))
    return make_plan(recipe, run_dir=tmp_path / "run", rows=list(rows))


def last_stage(plan, row="m"):
    return next(r.target.inputs["model"] for r in plan.rows if r.name == row)


def value(plan, node, key):
    argv = node.stage.command(node, plan.context, 1).argv
    (found,) = [a.partition("=")[2] for a in argv if a.lstrip("+").partition("=")[0] == key]
    return found


def test_updates_are_known_when_planned(tmp_path):
    """half-split: 4 + 4 + 4 + 4 updates, a step of direct GRPO is one."""
    plan = plan_of(tmp_path, "updates", rows=["direct-grpo", "m", "half-split"])
    plain, matched = last_stage(plan, "direct-grpo"), last_stage(plan)
    assert matched.settings == plain.settings | {
        "steps": 16,
        "matched": {"by": "updates", "to": "half-split", "budget": 16},
    }
    assert [n.label for n in matched.inputs.values()] == [n.label for n in plain.inputs.values()]
    assert value(plan, matched, "trainer.total_training_steps") == "16"
    assert matched.name == "student-rl-all-m" and matched.digest != plain.digest


def test_updates_round_up_and_leave_out_what_the_row_has_had_before(tmp_path):
    """Two mini-batches are two updates a step of Stage 3, before which the bridge has had 4 + 4 + 4."""
    verl = VERL | {"actor_rollout_ref.actor.ppo_mini_batch_size": 2}
    changes = {
        "stages__student_rl__verl": verl,
        "matched": {
            "a": {"row": "warmup-only", "to": "direct-grpo", "by": "updates"},
            "b": {"row": "half-split", "to": "seventeen", "by": "updates"},
            "seventeen": {"row": "full-bridge", "to": "direct-grpo", "by": "updates"},
        },
    }
    recipe = load_recipe(write_project(tmp_path, stages__student_rl__steps=9, **changes))
    plan = make_plan(recipe, rows=["a", "b", "seventeen"])
    assert last_stage(plan, "a").settings["steps"] == 18 - 4
    assert last_stage(plan, "seventeen").settings["steps"] == 18 - 4 - 4
    assert last_stage(plan, "b").settings["steps"] == (18 - 12) // 2


def test_labels_are_known_when_planned(tmp_path):
    """bridge-only-1h reads the 8 labels of a half, which direct GRPO has read after two batches of 4."""
    plan = plan_of(tmp_path, "labels", to="bridge-only-1h")
    assert last_stage(plan).settings["steps"] == 2
    assert [n.kind for n in plan.order] == ["slices", "grpo", "evaluate"], "the other row need not be built"
    plan = plan_of(tmp_path, "labels", to="bridge-only-1h", stages__teacher_rl__steps=1)
    assert last_stage(plan).settings["steps"] == 1
    plan = plan_of(
        tmp_path, "labels", to="half-split", data__labels=None, stages__teacher_rl__steps=2, stages__student_rl__steps=1
    )
    assert last_stage(plan).settings["matched"]["budget"] == 12, "of the 20 problems in the file"


@pytest.mark.parametrize("by", ["verifier_calls", "sampled_tokens"])
def test_what_has_to_be_measured_makes_the_other_row_an_input(tmp_path, by):
    plan = plan_of(tmp_path, by, rows=["m", "half-split"])
    matched, other = last_stage(plan), last_stage(plan, "half-split")
    assert matched.settings["steps"] is None and matched.settings["matched"] == {"by": by, "to": "half-split"}
    assert matched.inputs["matched"].digest == other.digest
    names = [n.name for n in plan.order]
    assert names.index("student-rl-all-m") > names.index("student-rl-2h")
    assert {n.name for n in ancestors(matched)} - {n.name for n in lineage(matched)} >= {"teacher-rl-1h", "opd-1h"}
    assert value(plan, matched, "trainer.total_training_steps") == "null", "nobody knows yet"
    changed = plan_of(tmp_path, by, rows=["m"], stages__opd__signal={"type": "sampled", "beta": 0.5})
    assert last_stage(changed).digest != matched.digest, "its address has what it was matched to"
    assert value(plan, matched, "trainer.save_freq") == "2"
    assert f"until the {by.replace('_', ' ')} of half-split" in stages()["grpo"].describe(matched)


def build(plan):
    return run_plan(plan, PlainProgress(), launcher=FakeStages(), check=lambda final: None)


def test_verifier_calls_become_steps_once_they_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "calls"}))
    changes = {"stages__teacher_rl__steps": 5, "stages__student_rl__verl": VERL | {"actor_rollout_ref.rollout.n": 3}}
    plan = plan_of(tmp_path, "verifier_calls", rows=["half-split", "m"], **changes)
    assert build(plan) == []
    # Of 5 steps with 8 calls and 4 with 12 it takes 88 / 12 steps, which is 8 with 12 each.
    assert value(plan, last_stage(plan), "trainer.total_training_steps") == "8"
    rows = {r.name: r for r in finished_rows(plan)}
    assert rows["half-split"].ledger["verifier_calls"] == 88 and rows["half-split"].matched is None
    assert rows["m"].ledger["verifier_calls"] == 96 and rows["m"].ledger["updates"] == 8
    match = rows["m"].matched
    assert (match.to, match.by, match.wanted, match.reached) == ("half-split", "verifier_calls", 88, 96)
    report = report_of(list(rows.values()), plan.context.run_dir, Facts("x"))
    assert "| m | half-split | verifier calls | 88 | 96 | +8 (+9.1 %) |" in markdown_of(report)
    assert "Matched rows" in report.table()
    assert report.data["rows"][1]["per_seed"][0]["matched"]["wanted"] == 88
    assert {r.name: r for r in found_rows(plan.context.run_dir)} == rows, "the run directory says the same"
    assert [s["name"] for s in rows["m"].stages] == ["slices", "student-rl-all-m", "evaluate-m"]


@pytest.mark.parametrize(("row", "trainer"), [("direct-grpo", "s2d_grpo"), ("opd-only", "s2d_opd")])
def test_a_budget_of_tokens_ends_a_stage_where_it_is_spent(tmp_path, monkeypatch, row, trainer):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "calls", "opd": "calls"}))
    verl = VERL | {"actor_rollout_ref.rollout.n": 3}
    changes = {"rows": ["half-split", "m"], "stages__student_rl__verl": verl}
    plan = plan_of(tmp_path, "sampled_tokens", row=row, to="half-split", **changes)
    assert build(plan) == []
    node = last_stage(plan)
    # half-split's stages sample 80, 100, 80 and 120 tokens; opd-only's teacher has had 80 before.
    assert value(plan, node, "trainer.v1.trainer_mode") == trainer
    budget, responses = (380, 12) if row == "direct-grpo" else (300, 8)
    assert value(plan, node, "s2d.until.sampled_tokens") == str(budget)
    assert value(plan, node, "trainer.total_training_steps") == str(-(-budget // responses)), (
        "at least a token a response"
    )
    (row_m,) = [r for r in finished_rows(plan) if r.name == "m"]
    spent = row_m.ledger["sampled_tokens"]
    # Direct GRPO samples 30 tokens a step, OPD 20.
    assert row_m.matched.wanted == 380 and row_m.matched.reached == spent == (390 if row == "direct-grpo" else 380)
    assert (plan.context.directory(node) / "model" / "model.safetensors").is_file()


def test_a_stage_that_stops_before_its_budget_has_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "short"}))
    (failure,) = build(plan_of(tmp_path, "sampled_tokens", to="warmup-only"))
    assert isinstance(failure, StageFailed) and "before it had spent its budget" in str(failure)


def test_a_match_of_a_match(tmp_path):
    matched = {
        "a": {"row": "direct-grpo", "to": "b", "by": "updates"},
        "b": {"row": "warmup-only", "to": "half-split", "by": "updates"},
    }
    plan = make_plan(load_recipe(write_project(tmp_path, matched=matched)), rows=["a", "b"])
    assert [last_stage(plan, row).settings["steps"] for row in "ab"] == [16, 12]


def test_every_seed_is_matched_to_its_own(tmp_path):
    matched = {"m": {"row": "direct-grpo", "to": "half-split", "by": "verifier_calls"}}
    plan = make_plan(load_recipe(write_project(tmp_path, matched=matched)), rows=["m"], seeds=[0, 1])
    for row in plan.rows:
        stage = row.target.inputs["model"]
        assert stage.name == f"student-rl-all-m (seed {row.seed})"
        assert stage.inputs["matched"].settings["seed"] == row.seed


def test_all_rows_have_the_matched_ones_among_them(tmp_path):
    plan = plan_of(tmp_path, "updates", rows=["all"])
    assert plan.rows[-1].name == "m" and len(plan.rows) == 13
    needs_sft = {"m": {"row": "direct-grpo", "to": "sft-teacher", "by": "updates"}}
    recipe = load_recipe(write_project(tmp_path, matched=needs_sft, sft_teacher=None))
    assert "m" not in [r.name for r in make_plan(recipe, rows=["all"]).rows]


@pytest.mark.parametrize(
    ("row", "to", "by", "key", "word"),
    [
        ("direct-grpo", "half-splt", "updates", "to", "Did you mean half-split?"),
        ("direct-grp", "half-split", "updates", "row", "Did you mean direct-grpo?"),
        ("direct-grpo", "half-split", "calls", "by", "verifier_calls"),
        ("direct-grpo", "direct-grpo", "updates", "to", "itself"),
        ("direct-grpo", "m", "updates", "to", "itself"),
        ("cold-student", "half-split", "updates", "row", "trains nothing"),
        ("full-bridge", "half-split", "verifier_calls", "by", "sampled_tokens, updates"),
        ("warmup-only", "half-split", "sampled_tokens", "by", "updates"),
        ("direct-grpo", "cold-student", "updates", "to", "consumes no updates"),
        ("direct-grpo", "raw-teacher", "verifier_calls", "to", "consumes no verifier calls"),
        ("direct-grpo", "raw-teacher", "labels", "to", "consumes no labels"),
        ("half-split", "bridge-only-1h", "sampled_tokens", "to", "nothing would be left"),
        ("half-split", "warmup-only", "verifier_calls", "to", "leave 0"),
        ("replay-control", "direct-grpo", "labels", "by", "have read already"),
    ],
)
def test_rows_that_cannot_be_matched(tmp_path, row, to, by, key, word):
    refuse(tmp_path, f"matched.m.{key}", word, choose=["m"], matched={"m": {"row": row, "to": to, "by": by}})


def test_a_budget_smaller_than_a_step(tmp_path):
    matched = {"m": {"row": "direct-grpo", "to": "bridge-only-1h", "by": "verifier_calls"}}
    verl = VERL | {"actor_rollout_ref.rollout.n": 16}
    refuse(
        tmp_path,
        "matched.m.to",
        "one step of it takes 64",
        choose=["m"],
        matched=matched,
        stages__student_rl__verl=verl,
    )


def test_rows_matched_in_a_circle(tmp_path):
    one = {"row": "direct-grpo", "by": "updates"}
    matched = {"a": {**one, "to": "b"}, "b": {**one, "to": "c"}, "c": {**one, "to": "a"}}
    refuse(tmp_path, "matched.a.to", "a -> b -> c -> a", matched=matched)


@pytest.mark.parametrize("name", ["half-split", "a,b", ""])
def test_names_that_a_matched_row_cannot_have(tmp_path, name):
    refuse(tmp_path, "matched", "own", matched={name: {"row": "direct-grpo", "to": "raw-teacher", "by": "updates"}})


def test_labels_that_cannot_be_told_in_advance(tmp_path):
    m = {"m": {"row": "direct-grpo", "to": "bridge-only-1h", "by": "labels"}}
    refuse(tmp_path, "matched.m.by", "more than once in batches of 4", choose=["m"], matched=m, data__labels=18)
    # A pass over 16 problems in batches of 12 is one batch.
    m = {"m": {"row": "direct-grpo", "to": "held-out-upstream", "by": "labels"}}
    verl = VERL | {"data.train_batch_size": 12, "actor_rollout_ref.actor.ppo_mini_batch_size": 12}
    refuse(tmp_path, "matched.m.to", "16 labels", "reads 12", choose=["m"], matched=m, stages__student_rl__verl=verl)
    write_scripts(tmp_path)
    data = {"data__train": None, "data__eval": {}, "data__source": {"script": "tasks.py"}, "data__labels": None}
    refuse(tmp_path, "data.labels", "in advance", choose=["m"], matched=m, **data)


def test_a_measured_budget_that_is_spent_already_is_told_at_the_next_command(tmp_path):
    """Tokens are not known before; here the row that was matched to turned out to sample next to nothing."""
    plan = plan_of(
        tmp_path, "sampled_tokens", row="half-split", to="direct-grpo", rows=["bridge-only-1h", "direct-grpo"]
    )
    assert build(plan) == []
    plan = make_plan(plan.recipe, run_dir=tmp_path / "run", rows=["m"])
    with pytest.raises(
        UserError, match=r"(?s)nothing to do.*200 sampled tokens.*all of direct-grpo only 80.*matched\.m"
    ):
        build(plan)


def test_batch_sizes_that_are_none_are_refused_before_anything_is_divided_by_them(tmp_path):
    m = {"m": {"row": "direct-grpo", "to": "half-split", "by": "verifier_calls"}}
    verl = VERL | {"actor_rollout_ref.rollout.n": 0}
    refuse(tmp_path, "rollout.n", "positive", choose=["m"], matched=m, stages__student_rl__verl=verl)
