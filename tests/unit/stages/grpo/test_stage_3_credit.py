"""Stage 3 with credit: what its command says, which rows have it, and what is refused before anything starts."""

from __future__ import annotations

import pytest
import ray
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from verl.trainer.ppo.utils import Role

from tests.support.tiny_verl import SIZES
from tests.support.workflow.project import write_project
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.signals.credit.kdrl import KDRL
from verl_s2d.signals.credit.rlsd import RLSD
from verl_s2d.stages.grpo.credit_config import CreditSettings, read_credit_config, read_credit_settings
from verl_s2d.stages.grpo.trainer import GrpoTrainer
from verl_s2d.stages.grpo.worker import CreditWorker
from verl_s2d.stages.planning import make_plan
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, overlay

CHOSEN = {"+s2d.credit.type": "rlsd", "+s2d.teacher.path": "teacher"}


def grpo(*changes: str, **chosen: object) -> DictConfig:
    """verl's own configuration under the overlays of stage 3 and a CPU."""
    base = merge(overlay("grpo"), overlay("cpu"), SIZES, chosen)
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*hydra_arguments(base), *changes])


def plan_of(tmp_path, chosen=None, **changes):
    """The plan of rows on the command line, or else of the recipe's own."""
    return make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=chosen)


def student_rl(plan, row):
    return next(r.target for r in plan.rows if r.name == row).inputs["model"]


def test_plain_grpo_has_no_teacher():
    assert read_credit_config(grpo()) is None
    assert read_credit_settings({"until": {"travel": 1}, "save_minutes": 1.0}) is None


def test_every_setting_is_read_and_written():
    found = read_credit_config(grpo(**CHOSEN, **{"+s2d.credit.lambda": 0.3, "+s2d.teacher.trust_remote_code": True}))
    assert found == CreditSettings(
        credit=RLSD(**{"lambda": 0.3}), teacher=FrozenModel(path="teacher", trust_remote_code=True)
    )
    assert read_credit_settings(found.written()) == found


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"+s2d.credit.type": "rlsd"}, "s2d.teacher.path", None),
        ({"+s2d.teacher.path": "t"}, "s2d.teacher", {"path": "t"}),
        (CHOSEN | {"+s2d.credit.alpha": 0.5}, "s2d.credit.alpha", 0.5),
        (CHOSEN | {"+s2d.credit.type": "forward_kl"}, "s2d.credit.type", "forward_kl"),
        (CHOSEN | {"+s2d.teacher.model": "t"}, "s2d.teacher.model", "t"),
        (CHOSEN | {"+s2d.teacher.placement": "server"}, "s2d.teacher.placement", "server"),
        (CHOSEN | {"+s2d.signal.type": "sampled"}, "s2d.signal", {"type": "sampled"}),
        ({"+s2d.credits.type": "rlsd"}, "s2d.credits", {"type": "rlsd"}),
        ({"+s2d.credit": "rlsd"}, "s2d.credit", "rlsd"),
        (
            CHOSEN | {"actor_rollout_ref.actor.use_kl_loss": True},
            "actor_rollout_ref.actor.use_kl_loss",
            True,
        ),
        (CHOSEN | {"algorithm.use_kl_in_reward": True}, "algorithm.use_kl_in_reward", True),
        (CHOSEN | {"distillation.enabled": True}, "distillation.enabled", True),
        (
            CHOSEN
            | {
                "actor_rollout_ref.ref.log_prob_use_dynamic_bsz": False,
                "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": None,
            },
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
            None,
        ),
        (CHOSEN | {"+s2d.credit.type": "kdrl", "+s2d.until.sampled_tokens": 100}, "s2d.credit.type", "kdrl"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(changes, key, value):
    with pytest.raises(UserError) as caught:
        GrpoTrainer(grpo(**changes, **{"actor_rollout_ref.model.path": "hdfs://somewhere/student"}))
    assert not ray.is_initialized()
    assert (caught.value.key, caught.value.value) == (key, value) and caught.value.remedy


def test_a_coefficient_that_stays_needs_no_number_of_steps():
    kept = {"+s2d.credit.type": "kdrl", "+s2d.credit.beta_end": 0.2, "+s2d.until.sampled_tokens": 100}
    assert read_credit_config(grpo(**CHOSEN | kept)).credit == KDRL(beta_end=0.2)


LORA = {"actor_rollout_ref.model.lora_rank": 4, "actor_rollout_ref.model.lora.merge": True}


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_the_teacher_sits_where_the_reference_policy_sits(monkeypatch, lora):
    monkeypatch.setattr(ray, "remote", lambda cls: cls)
    trainer = object.__new__(GrpoTrainer)
    trainer.config = grpo(**CHOSEN | lora)
    trainer.credited = read_credit_config(trainer.config)
    trainer._init_resource_pool_mgr()
    assert trainer.role_worker_mapping == {Role.ActorRolloutRef: CreditWorker}
    assert set(trainer.resource_pool_manager.mapping) == {Role.ActorRolloutRef, Role.RewardModel}


def test_the_rows_teacher_is_an_input_of_stage_3_and_its_command_names_it(tmp_path):
    plan = plan_of(tmp_path, ["half-split", "direct-grpo"], stages__student_rl__credit="rlsd")
    node, direct = student_rl(plan, "half-split"), student_rl(plan, "direct-grpo")
    teacher = node.inputs["model"].inputs["teacher"]
    assert node.inputs["teacher"].digest == teacher.digest and node.stage.frozen_roles(node) == ("teacher",)
    command = node.stage.command(node, plan.context, 1).argv
    expected = {"type": "rlsd", "lambda": 0.5, "clip": 0.2}
    assert {f"+s2d.credit.{key}={value}" for key, value in expected.items()} <= set(command)
    model = f"{plan.context.directory(teacher)}/model"
    assert any(argument.startswith("+s2d.teacher.path=") and model in argument for argument in command)
    assert "trainer.v1.trainer_mode=s2d_grpo" in command and "rlsd (lambda 0.5, clip 0.2)" in node.stage.describe(node)
    assert not any("s2d.credit" in argument for argument in direct.stage.command(direct, plan.context, 1).argv)


def test_without_a_credit_stage_3_is_what_it_was(tmp_path):
    plain, credited = (plan_of(tmp_path / name, ["half-split"], **more) for name, more in (("a", {}), ("b", KDRL_ROW)))
    before, after = student_rl(plain, "half-split"), student_rl(credited, "half-split")
    assert "teacher" not in before.inputs and "credit" not in before.settings
    assert {key for key in after.settings if after.settings[key] != before.settings.get(key)} == {"credit"}
    assert before.inputs["model"].digest != before.digest != after.digest


KDRL_ROW = {"stages__student_rl__credit": {"type": "kdrl"}}


def test_the_joint_row_is_half_split_without_2b_and_with_its_distillation_in_stage_3(tmp_path):
    plan = plan_of(tmp_path, ["half-split", "joint-kdrl"])
    sequential, joint = student_rl(plan, "half-split"), student_rl(plan, "joint-kdrl")
    assert joint.inputs["model"].digest == sequential.inputs["model"].inputs["model"].digest
    credit = {"type": "kdrl", "beta": 0.2, "beta_end": 0.002} | ALL
    steps = sequential.inputs["model"].settings["steps"] + sequential.settings["steps"]
    assert joint.settings == sequential.settings | {"credit": credit, "steps": steps}
    assert joint.inputs["teacher"].digest == sequential.inputs["model"].inputs["teacher"].digest


ALL = {"rollouts": "all"}


def test_a_credit_of_the_recipes_own_is_an_input_by_content(tmp_path):
    write_project(tmp_path)
    text = "from verl_s2d.signals.credit.credit import Credit\nclass Mine(Credit):\n    by: float = 2.0\n"
    (tmp_path / "mine.py").write_text(text)
    first = plan_of(tmp_path, ["half-split"], stages__student_rl__credit={"type": "mine.py:Mine", "by": 3.0})
    node = student_rl(first, "half-split")
    assert node.settings["credit"] == {"type": "Mine", "by": 3.0} and "credit" in node.externals
    command = node.stage.command(node, first.context, 1).argv
    assert any(
        argument.startswith("+s2d.credit.type=") and f"{tmp_path}/mine.py:Mine" in argument for argument in command
    )
    (tmp_path / "mine.py").write_text(text + "# changed\n")
    again = plan_of(tmp_path, ["half-split"], stages__student_rl__credit={"type": "mine.py:Mine", "by": 3.0})
    assert student_rl(again, "half-split").digest != node.digest


@pytest.mark.parametrize(
    ("credit", "key"),
    [("rlds", "type"), ({"type": "rlsd", "alpha": 1.0}, "alpha"), ({"type": "trrd", "alpha": 1.0}, "alpha")],
)
def test_a_recipes_bad_credit_is_refused_at_planning(tmp_path, credit, key):
    with pytest.raises(UserError) as caught:
        plan_of(tmp_path, ["half-split"], stages__student_rl__credit=credit)
    assert caught.value.key == f"stages.student_rl.credit.{key}"


def test_a_credit_that_no_row_reads_is_refused(tmp_path):
    changes = {"rows": ["direct-grpo", "bridge-only-1h", "joint-kdrl"], "stages__student_rl__credit": "rlsd"}
    with pytest.raises(UserError, match="No row of the recipe") as caught:
        plan_of(tmp_path, **changes)
    assert caught.value.key == "stages.student_rl.credit"
    assert plan_of(tmp_path, **changes | {"rows": ["half-split"]}).order
