"""Rows differ by the stage they drop, share what they can, and say exactly what verl will be told."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import FIXED_MICRO_BATCHES, settings, write_project, write_scripts
from verl_s2d import arguments
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.rows import ROWS
from verl_s2d.stages.evaluate.sample_and_score import Options as EvaluationOptions
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.graph import ancestors, build_order


def plan_of(tmp_path, rows=("all",), seeds=None, **changes):
    recipe = load_recipe(write_project(tmp_path, **changes))
    return make_plan(recipe, run_dir=tmp_path / "run", rows=list(rows), seeds=seeds)


def stages_of(plan, row):
    target = next(r.target for r in plan.rows if r.name == row)
    return {n.digest: n for n in ancestors(target)}


def trained(plan, row):
    return [n.name for n in stages_of(plan, row).values() if n.kind not in ("evaluate", "slices", "script")]


def test_what_each_row_trains(tmp_path):
    plan = plan_of(tmp_path)
    bridge = ["teacher-rl-1h", "rollouts-1h", "warmup-1h", "opd-1h"]
    assert trained(plan, "cold-student") == []
    assert trained(plan, "direct-grpo") == ["student-rl-all"]
    assert trained(plan, "bridge-only-1h") == bridge
    assert trained(plan, "half-split") == [*bridge, "student-rl-2h"]
    assert trained(plan, "full-bridge") == ["teacher-rl-all", "rollouts-all", "warmup-all", "opd-all"]
    assert trained(plan, "raw-teacher") == ["rollouts-all-raw", "warmup-all-raw", "opd-all-raw"]
    assert trained(plan, "opd-only") == ["teacher-rl-all", "opd-all-cold"]
    assert trained(plan, "warmup-only") == ["teacher-rl-all", "rollouts-all", "warmup-all"]
    assert trained(plan, "replay-control") == [*bridge, "student-rl-1h"]
    upstream = ["rollouts-1h-upstream", "warmup-1h-upstream", "opd-1h-upstream"]
    assert trained(plan, "held-out-upstream") == ["teacher-rl-1h", "teacher-rl-2h", *upstream]
    same_size = [f"{stage}-all-same-size" for stage in ("teacher-rl", "rollouts", "warmup", "opd")]
    assert trained(plan, "same-size-teacher") == same_size
    assert trained(plan, "sft-teacher") == ["rollouts-all-sft", "warmup-all-sft", "opd-all-sft"]


@pytest.mark.parametrize(("row", "dropped"), [("opd-only", "warmup"), ("warmup-only", "opd"), ("raw-teacher", "grpo")])
def test_an_ablation_is_the_full_bridge_without_one_kind_of_stage(tmp_path, row, dropped):
    plan = plan_of(tmp_path, rows=["full-bridge", row])
    full, ablated = ({n.kind: n for n in stages_of(plan, name).values()} for name in ("full-bridge", row))
    assert full.keys() - ablated.keys() >= {dropped}
    for kind in ablated:
        assert ablated[kind].settings == full[kind].settings


def test_the_replay_control_differs_from_half_split_by_the_labels_of_stage_3(tmp_path):
    plan = plan_of(tmp_path, rows=["half-split", "replay-control"])
    fresh, replayed = (row.target.inputs["model"] for row in plan.rows)
    inputs = [{role: n.digest for role, n in stage.inputs.items()} for stage in (fresh, replayed)]
    assert inputs[0] == inputs[1] and fresh.externals == replayed.externals
    assert {k for k in fresh.settings if fresh.settings[k] != replayed.settings[k]} == {"slice"}


def test_the_labels_held_out_can_go_upstream_instead(tmp_path):
    """The same updates on the same labels: half-split's Stage 3 and this row's second half of Stage 1."""
    plan = plan_of(tmp_path, rows=["half-split", "held-out-upstream"])
    upstream = {n.name: n for n in stages_of(plan, "held-out-upstream").values()}
    assert upstream["teacher-rl-2h"].inputs["model"].name == "teacher-rl-1h"
    assert upstream["opd-1h-upstream"].inputs["teacher"].name == "teacher-rl-2h"
    assert upstream["opd-1h-upstream"].settings == next(n for n in plan.order if n.name == "opd-1h").settings


def test_a_teacher_of_the_students_size_is_the_student_after_stage_1(tmp_path):
    """Equal settings of stages 1 and 3 make it the model that direct GRPO ends with, trained once."""
    plan = plan_of(tmp_path, rows=["same-size-teacher", "direct-grpo"])
    bridged, direct = (row.target.inputs["model"] for row in plan.rows)
    assert bridged.inputs["teacher"].digest == direct.digest


def test_all_rows_are_those_with_a_teacher(tmp_path):
    assert "sft-teacher" not in [r.name for r in plan_of(tmp_path, sft_teacher=None).rows]
    with pytest.raises(UserError, match="sft_teacher"):
        plan_of(tmp_path, rows=["sft-teacher"], sft_teacher=None)


def test_half_split_is_the_bridge_plus_stage_3_and_nothing_else(tmp_path):
    plan = plan_of(tmp_path)
    bridge, full = stages_of(plan, "bridge-only-1h"), stages_of(plan, "half-split")
    added = [n for d, n in full.items() if d not in bridge]
    assert [n.name for n in added] == ["student-rl-2h", "evaluate-half-split"]
    assert [n.kind for d, n in bridge.items() if d not in full] == ["evaluate"]


def test_raw_teacher_is_the_full_bridge_without_stage_1(tmp_path):
    plan = plan_of(tmp_path)
    full, raw = ({n.kind: n for n in stages_of(plan, r).values()} for r in ("full-bridge", "raw-teacher"))
    assert full.keys() - raw.keys() == {"grpo"}
    for kind in raw:
        assert raw[kind].settings == full[kind].settings
        for role in raw[kind].externals.keys() & full[kind].externals.keys():
            assert raw[kind].externals[role] == full[kind].externals[role]
    assert raw["rollouts"].externals["model"].location.endswith("teacher")
    assert full["rollouts"].inputs["model"].digest == full["grpo"].digest


def test_rows_share_stages(tmp_path):
    plan = plan_of(tmp_path)
    names = [n.name for n in plan.order]
    assert len(names) == len(set(names))
    assert names.count("slices") == 1 and names.count("teacher-rl-1h") == 1


def test_stage_3_never_reads_the_bridges_slice(tmp_path):
    plan = plan_of(tmp_path)
    slices = {n.name: n.settings.get("slice") for n in stages_of(plan, "half-split").values()}
    assert slices["student-rl-2h"] == "2h" and slices["teacher-rl-1h"] == slices["opd-1h"] == "1h"


def test_seeds_change_everything_that_is_random(tmp_path):
    plan = plan_of(tmp_path, rows=["half-split"], seeds=[0, 1])
    first, second = ({n.digest for n in build_order([r.target])} for r in plan.rows)
    assert not first & second


def test_scripts_follow_the_seed_only_when_they_ask_for_it(tmp_path):
    write_scripts(tmp_path)
    changes = {
        "student": {"script": "pretrain.py", "args": {"size": "small"}},
        "teacher": {"script": "pretrain.py", "args": {"size": "large", "seed": "{seed}"}},
    }
    plan = plan_of(tmp_path, rows=["half-split"], seeds=[0, 1], **changes)
    scripts = [n for n in plan.order if n.kind == "script"]
    assert sorted((n.name, n.settings["args"].get("seed")) for n in scripts) == [
        ("student", None),
        ("teacher (seed 0)", 0),
        ("teacher (seed 1)", 1),
    ]


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        ({"evaluation__samples": 4}, {"evaluate"}),
        ({"stages__student_rl__steps": 5}, {"grpo", "evaluate"}),
        ({"stages__opd__signal__beta": 0.5}, {"opd", "grpo", "evaluate"}),
        ({"stages__rollouts__per_prompt": 3}, {"rollouts", "warmup", "opd", "grpo", "evaluate"}),
        ({"stages__opd__save_every": 1}, set()),
        ({"stages__warmup__verl__trainer.max_ckpt_to_keep": 3}, set()),
        ({"cluster__stall_minutes": 3.0}, set()),
        ({"name": "renamed"}, set()),
    ],
)
def test_a_changed_setting_rebuilds_what_depends_on_it(tmp_path, change, rebuilt):
    before = {n.digest for n in plan_of(tmp_path, rows=["cold-student", "half-split"]).order}
    after = plan_of(tmp_path, rows=["cold-student", "half-split"], **change).order
    assert {n.kind for n in after if n.digest not in before} == rebuilt


def test_operational_verl_keys_rebuild_nothing(tmp_path):
    before = plan_of(tmp_path, rows=["direct-grpo"])
    verl = dict(before.recipe.stages.student_rl.verl) | {
        "reward.num_workers": 3,
        "trainer.logger": ["console", "wandb"],
    }
    after = plan_of(tmp_path, rows=["direct-grpo"], stages__student_rl__verl=verl)
    assert after.order[-1].digest == before.order[-1].digest
    argv = after.order[1].stage.command(after.order[1], after.context, 1).argv
    assert "reward.num_workers=3" in argv and "trainer.logger=[console,wandb,file]" in argv


TIP = {"type": "reverse_kl", "keep_tokens": 0.5}
"""Its ranges are those of the batch."""


@pytest.mark.parametrize(
    ("more", "rebuilds"),
    [
        ({}, False),
        ({"actor_rollout_ref.actor.policy_loss.loss_mode": "vanilla"}, False),
        # The loss takes a number from the micro-batch: a selection of tokens, a padded width.
        ({"actor_rollout_ref.actor.policy_loss.loss_mode": "kl_cov"}, True),
        ({"algorithm.rollout_correction.bypass_mode": True}, True),
        ({"actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm"}, True),
        (
            {
                "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm",
                "actor_rollout_ref.actor.loss_scale_factor": 8,
            },
            False,
        ),
    ],
)
def test_micro_batches_rebuild_nothing_unless_the_loss_depends_on_them(tmp_path, more, rebuilds):
    def opd(**cut):
        verl = settings()["stages"]["opd"]["verl"] | more | cut
        plan = plan_of(tmp_path, rows=["half-split"], stages__opd__verl=verl, stages__opd__signal=TIP)
        return plan, next(node for node in plan.order if node.kind == "opd")

    (_, dynamic), (_, larger), (plan, fixed) = (
        opd(),
        opd(**{"actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 99}),
        opd(**FIXED_MICRO_BATCHES),
    )
    assert len({dynamic.digest, larger.digest, fixed.digest}) == (3 if rebuilds else 1)
    argv = fixed.stage.command(fixed, plan.context, 1).argv
    assert "actor_rollout_ref.actor.use_dynamic_bsz=false" in argv


def test_a_micro_batch_holds_two_sequences_of_full_length_by_default(tmp_path):
    plan = plan_of(
        tmp_path,
        rows=["half-split"],
        data__prompt_tokens=2048,
        data__response_tokens=16_384,
        stages__opd__response_tokens=4096,
    )
    budgets = {"teacher-rl-1h": 36_864, "opd-1h": 16_384, "warmup-1h": 36_864}
    for name, tokens in budgets.items():
        key = "data.max_token_len_per_gpu" if "warmup" in name else "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
        assert parsed(command(plan, name).argv[3:])[key] == tokens


def test_stage_2b_may_cut_responses_earlier(tmp_path):
    lengths = {}
    for response in (None, 2):
        plan = plan_of(tmp_path, rows=["half-split"], stages__opd__response_tokens=response)
        lengths[response] = {
            node.kind: parsed(command(plan, node.name).argv[3:]).get("data.max_response_length")
            for node in plan.order
            if node.kind in ("grpo", "opd")
        }
    assert lengths == {None: {"grpo": 4, "opd": 4}, 2: {"grpo": 4, "opd": 2}}
    for wrong in (0, 5):
        with pytest.raises(UserError, match=r"stages\.opd\.response_tokens"):
            plan_of(tmp_path, rows=["half-split"], stages__opd__response_tokens=wrong)


@pytest.mark.parametrize(("signal", "read"), [("sampled", None), ("reverse_kl", False)])
def test_an_exact_signal_asks_the_rollout_for_no_log_probabilities(tmp_path, signal, read):
    plan = plan_of(tmp_path, rows=["half-split"], stages__opd__signal=signal)
    told = parsed(command(plan, "opd-1h").argv[3:])
    assert told.get("actor_rollout_ref.rollout.calculate_log_probs") == read


def test_a_changed_script_or_file_rebuilds(tmp_path):
    before = plan_of(tmp_path, rows=["half-split"])
    (tmp_path / "verifier.py").write_text("def score(*args, **kwargs):\n    return 0.0\n")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    after = make_plan(recipe, run_dir=tmp_path / "run", rows=["half-split"])
    old = {n.digest for n in before.order}
    assert [n.kind for n in after.order if n.digest in old] == ["slices"]


def test_stage_that_a_row_needs_must_have_settings(tmp_path):
    with pytest.raises(UserError, match=r"stages\.opd"):
        plan_of(tmp_path, rows=["half-split"], stages__opd=None)
    assert plan_of(tmp_path, rows=["cold-student"], stages__opd=None).order


def test_default_rows_and_all(tmp_path):
    assert [r.name for r in plan_of(tmp_path).rows] == list(ROWS)
    with pytest.raises(UserError, match="Did you mean half-split"):
        plan_of(tmp_path, rows=["half-splt"])


def command(plan, name):
    node = next(n for n in plan.order if n.name == name)
    return node.stage.command(node, plan.context, 2)


def parsed(argv):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return {o.input_line.partition("=")[0]: o.value() for o in OverridesParser.create().parse_overrides(argv)}


def test_overrides_of_grpo(tmp_path):
    plan = plan_of(tmp_path, rows=["half-split"])
    argv = command(plan, "teacher-rl-1h").argv[3:]
    values = parsed(argv)
    assert len({key.lstrip("+") for key in values}) == len(argv), "an override is given twice"
    directory = next(plan.context.directory(n) for n in plan.order if n.name == "teacher-rl-1h")
    expected = {
        "actor_rollout_ref.model.path": str(tmp_path / "teacher"),
        "algorithm.adv_estimator": "grpo",
        "data.train_batch_size": 4,
        "trainer.resume_mode": "auto",
        "trainer.total_training_steps": 4,
        "trainer.default_local_dir": f"{directory}/checkpoints",
        "reward.custom_reward_function.path": "pkg://verl_s2d.verifiers.ledgered",
        "+reward.custom_reward_function.reward_kwargs.verifier": f"{tmp_path}/verifier.py:score",
        "+reward.custom_reward_function.reward_kwargs.ledger_dir": f"{directory}/verifier",
        "+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH": f"{directory}/metrics/attempt-2.jsonl",
        "trainer.device": "cpu",
        "trainer.logger": ["console", "file"],
    }
    assert {key: values.get(key) for key in expected} == expected


def test_opd_is_given_no_answers_and_no_reward(tmp_path):
    plan = plan_of(tmp_path, rows=["half-split"])
    argv = command(plan, "opd-1h").argv
    assert not [a for a in argv if "reward_function" in a or "verifier" in a]
    files = [a for a in argv if a.startswith(("data.train_files", "data.val_files"))]
    assert len(files) == 2 and all("1h-prompts.parquet" in f for f in files)
    teacher = next(plan.context.directory(n) for n in plan.order if n.name == "teacher-rl-1h")
    assert any(a.startswith("+s2d.teacher.path=") and f"{teacher}/model" in a for a in argv)
    assert "trainer.v1.trainer_mode=s2d_opd" in argv and "+s2d.signal.beta=1.0" in argv


def test_the_chat_template_is_the_same_in_every_stage(tmp_path):
    plan = plan_of(tmp_path, rows=["half-split"], data__chat_template={"enable_thinking": False})
    for name in ("teacher-rl-1h", "opd-1h", "student-rl-2h"):
        assert "+data.apply_chat_template_kwargs.enable_thinking=false" in command(plan, name).argv
    for name in ("rollouts-1h", "evaluate-half-split"):
        assert "chat_template.enable_thinking=false" in command(plan, name).argv


def test_a_large_model_is_sampled_on_several_gpus_and_is_the_same_result(tmp_path):
    alone = plan_of(tmp_path, rows=["half-split"])
    shared = plan_of(
        tmp_path,
        rows=["half-split"],
        stages__rollouts={"per_prompt": 2, "tensor_parallel_size": 8},
        evaluation={"samples": 2, "tensor_parallel_size": 2},
    )
    for name, size in (("rollouts-1h", 8), ("evaluate-half-split", 2)):
        assert f"tensor_parallel_size={size}" in command(shared, name).argv
        assert "tensor_parallel_size=1" in command(alone, name).argv
    assert [n.digest for n in shared.order] == [n.digest for n in alone.order]


def test_a_verifiers_options_reach_training_and_evaluation(tmp_path):
    chosen = {"name": "math", "form": "boxed"}
    plan = plan_of(tmp_path, rows=["direct-grpo"], verifier=chosen)
    argv = command(plan, "student-rl-all").argv[3:]
    assert json.loads(parsed(argv)["+reward.custom_reward_function.reward_kwargs.verifier"]) == chosen
    evaluated = arguments.parse(command(plan, "evaluate-direct-grpo").argv[3:], EvaluationOptions)
    assert json.loads(evaluated.verifier) == chosen


def test_hydra_reads_the_arguments_as_they_were_meant(tmp_path):
    from verl_s2d.verl_settings.overrides import hydra_arguments

    meant = {
        "a.path": "/tmp/with space/it's [x]{y}=z,\\",
        "a.back": "c:\\dir\\'quoted\\'",
        "+a.null": None,
        "a.flag": False,
        "a.lr": 1e-6,
        "a.list": ["console", "file", 1],
        "a.map": {"x": "y z", "n": 2},
        "a.number_text": "12",
        "a.word": "true",
        "a.empty": "",
    }
    assert parsed(hydra_arguments(meant)) == meant
    plan = plan_of(tmp_path, rows=["half-split"])
    for name in ("teacher-rl-1h", "opd-1h", "warmup-1h"):
        assert parsed(command(plan, name).argv[3:])
