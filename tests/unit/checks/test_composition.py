"""verl itself is asked about every stage's configuration, without models, data or an accelerator."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import settings, write_project
from verl_s2d.checks import verl_probe
from verl_s2d.checks.verl_probe import VerlProbe
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

MEGATRON = {
    "model_engine": "megatron",
    "actor_rollout_ref.actor.megatron.tensor_model_parallel_size": 3,
    "actor_rollout_ref.actor.megatron.pipeline_model_parallel_size": 1,
}

# verl's older key beside fsdp_config.
ULYSSES = {"actor_rollout_ref.actor.ulysses_sequence_parallel_size": 3}


def accepted(tmp_path, key=None, value=None, *, rows=("half-split",), **changes):
    """The number of stages that verl accepts, once a key of a stage's `verl:` is changed."""
    recipe = write_project(tmp_path, **changes)
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=list(rows))
    if key is not None:
        stage = key.partition(".")[0]
        verl = dict(getattr(plan.recipe.stages, stage).verl) | dict(value)
        recipe = write_project(tmp_path, **changes, **{f"stages__{stage}__verl": verl})
        plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=list(rows))
    with VerlProbe(plan.context.device, stage_environment(plan.context.device), plan, plan.order) as probe:
        return len(probe.stages())


def test_all_stages_of_all_rows_are_accepted(tmp_path):
    assert accepted(tmp_path, rows=["all"]) == 19


def test_stages_of_matched_rows_are_accepted_before_their_budget_is_known(tmp_path):
    matched = {
        "calls": {"row": "direct-grpo", "to": "half-split", "by": "verifier_calls"},
        "tokens": {"row": "direct-grpo", "to": "half-split", "by": "sampled_tokens"},
        "opd-tokens": {"row": "bridge-only-1h", "to": "half-split", "by": "sampled_tokens"},
    }
    assert accepted(tmp_path, rows=list(matched), matched=matched) == 7
    with pytest.raises(UserError, match=r"student-rl-all-tokens(?s:.*)lr_scheduler_type(?s:.*)matched by tokens"):
        cosine = {"actor_rollout_ref.actor.optim.lr_scheduler_type": "cosine"}
        accepted(tmp_path, "student_rl", cosine, rows=["calls", "tokens"], matched=matched)


def test_a_credit_is_accepted_unless_its_schedule_has_no_end(tmp_path):
    matched = {"tokens": {"row": "half-split", "to": "direct-grpo", "by": "sampled_tokens"}}
    changes = {"stages__student_rl__credit": "kdrl", "stages__opd__signal": "uni_opd", "matched": matched}
    assert accepted(tmp_path, **changes) == 4
    with pytest.raises(UserError, match=r"student-rl-2h-tokens(?s:.*)schedule needs it") as caught:
        accepted(tmp_path, rows=["tokens"], **changes)
    assert caught.value.key == "s2d.credit.type"


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("teacher_rl", {"actor_rollout_ref.actor.loss_agg_mode": "mean"}, "teacher-rl-1h.*loss_agg_mode"),
        ("student_rl", {"data.train_batch_sizes": 4}, "student-rl-2h.*train_batch_sizes"),
        ("opd", {"actor_rollout_ref.actor.use_kl_loss": True}, "opd-1h.*use_kl_loss"),
        ("teacher_rl", {"actor_rollout_ref.rollout.top_p": 1.5}, r"teacher-rl-1h.*rollout\.top_p"),
        ("student_rl", {"actor_rollout_ref.rollout.val_kwargs.top_k": -2}, r"student-rl-2h.*val_kwargs\.top_k"),
        (
            "teacher_rl",
            {"actor_rollout_ref.rollout.max_model_len": 10},
            r"have \(12\).*max_model_len",
        ),
        ("opd", {"+s2d.skip_limit": 0}, "opd-1h.*skip_limit"),
        ("student_rl", {"actor_rollout_ref.model.lora_rank": 8}, r"student-rl-2h.*model\.lora\.merge"),
        ("warmup", {"engine.strategy": "ddp"}, "warmup-1h.*engine.strategy"),
        ("teacher_rl", MEGATRON, "teacher-rl-1h.*megatron.tensor_model_parallel_size"),
        ("teacher_rl", ULYSSES, "teacher-rl-1h.*not a whole number of groups.*ulysses_sequence_parallel_size"),
    ],
)
def test_what_verl_or_our_trainers_refuse_is_refused_before_the_first_stage(tmp_path, stage, change, words):
    gpus = {"cluster__gpus_per_node": 4, "cluster__device": "cuda"} if change in (MEGATRON, ULYSSES) else {}
    with pytest.raises(UserError, match=f"(?s){words}.*remedy"):
        accepted(tmp_path, stage, change, **gpus)


def test_all_stages_that_would_not_start_are_told(tmp_path):
    changes = {"stages__teacher_rl__verl": {"actor_rollout_ref.rollout.top_p": 0.0}}
    changes["stages__student_rl__verl"] = {"actor_rollout_ref.rollout.temperature": 3.0}
    given = settings()["stages"]
    merged = {key: given[key.split("__")[1]]["verl"] | verl for key, verl in changes.items()}
    with pytest.raises(UserError) as caught:
        accepted(tmp_path, **merged)
    assert len(caught.value.texts()) == 2 and "teacher-rl-1h" in str(caught.value)
    assert "student-rl-2h" in str(caught.value)


def test_verl_is_asked_once_about_stages_that_differ_in_paths_alone(tmp_path, monkeypatch):
    plan = make_plan(load_recipe(write_project(tmp_path)), run_dir=tmp_path / "run", rows=["all"])
    asked = []
    real = verl_probe.Probe.__init__

    def init(probe, arguments, environment, question=None, **rest):
        asked.append(question["stages"])
        real(probe, arguments, environment, question, **rest)

    monkeypatch.setattr(verl_probe.Probe, "__init__", init)
    with VerlProbe("cpu", stage_environment("cpu"), plan, plan.order) as probe:
        answered = probe.stages()
    trained = [node for node in plan.order if node.stage.trains]
    assert set(answered) == {node.label for node in trained} and len(asked[0]) < len(trained)
    for node in trained:
        assert answered[node.label]["trainer"]["total_training_steps"] == node.settings["steps"]


def test_megatron_is_accepted_in_every_stage(tmp_path):
    """Half of the GPUs divide a sequence's work, the other half the batch."""
    rl = {
        "model_engine": "megatron",
        "actor_rollout_ref.actor.megatron.tensor_model_parallel_size": 2,
        "actor_rollout_ref.ref.megatron.tensor_model_parallel_size": 2,
        "data.train_batch_size": 4,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
    }
    warmup = {"engine": "megatron", "optim": "megatron", "engine.tensor_model_parallel_size": 2}
    changes = {f"stages__{stage}__verl": rl for stage in ("teacher_rl", "opd", "student_rl")}
    changes["stages__warmup__verl"] = {**warmup, "data.train_batch_size": 4}
    changes |= {"stages__opd__signal": "reverse_kl", "cluster__gpus_per_node": 4, "cluster__device": "cuda"}
    assert accepted(tmp_path, **changes) == 4
    for role in ("actor", "ref"):
        key = f"actor_rollout_ref.{role}.megatron.use_dist_checkpointing"
        with pytest.raises(UserError, match="in place of the model this stage is given") as caught:
            accepted(tmp_path, **changes | {"stages__opd__verl": rl | {key: True}})
        assert caught.value.key == key


def test_a_process_that_says_nothing_is_an_error_with_what_it_wrote(tmp_path, own_composition_process):
    plan = make_plan(load_recipe(write_project(tmp_path)), run_dir=tmp_path / "run", rows=["half-split"])
    environment = stage_environment("cpu") | {"PYTHONHOME": str(tmp_path)}
    with VerlProbe("cpu", environment, plan, plan.order) as probe:
        assert not probe.registration()[0] and "import verl failed" in probe.registration()[1]
        with pytest.raises(UserError, match="import verl failed"):
            probe.stages()
