"""Every verl configuration key that a stage is given exists in verl, and defaults repeated here are verl's."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.support.paths import ROOT
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.shared.batch_settings import MINI, TRAIN, N
from verl_s2d.verl_settings.generated import verl_default

QUICKSTART = ROOT / "recipes" / "quickstart" / "quickstart.yaml"
CONFIGS = {
    "verl.trainer.main_ppo": ("verl.trainer.config", "ppo_trainer"),
    "verl_s2d.stages.warmup.trainer": ("verl_s2d.stages.warmup", "s2d_warmup"),
}


def composed(module: str, overrides: list[str]):
    package, name = CONFIGS[module]
    with initialize_config_module(package, version_base=None):
        return compose(name, overrides=[text for text in overrides if not text.startswith("hydra.")])


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return make_plan(load_recipe(QUICKSTART), run_dir=tmp_path_factory.mktemp("run"), rows=None, seeds=None)


@pytest.fixture(scope="module")
def commands(plan) -> dict[str, list[str]]:
    """Kind -> the command of one quickstart stage of that kind."""
    return {node.kind: list(node.stage.command(node, plan.context, 1).argv) for node in plan.order}


@pytest.mark.parametrize("kind", ["grpo", "opd", "warmup"])
def test_verl_takes_every_override_of_a_stage(commands, kind):
    _, dash_m, module, *overrides = commands[kind]
    assert dash_m == "-m"
    composed(module, overrides)


@pytest.mark.parametrize("kind", ["grpo", "opd", "warmup"])
def test_nothing_in_a_stages_configuration_trusts_remote_code(commands, kind):
    """Every section of verl's that has such a switch: models, data, critic, reward model."""

    def switches(value, path=""):
        if isinstance(value, dict):
            for key, entry in value.items():
                yield from switches(entry, f"{path}.{key}")
                if key == "trust_remote_code":
                    yield f"{path}.{key}", entry

    _, _, module, *overrides = commands[kind]
    found = dict(switches(OmegaConf.to_container(composed(module, overrides), resolve=True)))
    assert len(found) >= 2 and not any(found.values()), found


@pytest.mark.parametrize("kind", ["grpo", "opd", "warmup"])
def test_composing_without_verl_gives_what_verl_composes(plan, kind):
    node = next(node for node in plan.order if node.kind == kind)
    _, _, module, *overrides = node.stage.command(node, plan.context, 1).argv
    expected = OmegaConf.to_container(composed(module, overrides), resolve=True)
    assert node.stage.composed_settings(node, plan.context) == expected


@pytest.mark.parametrize(
    "key",
    [
        *(TRAIN, MINI, N),
        "actor_rollout_ref.actor.ppo_epochs",
        "actor_rollout_ref.actor.use_dynamic_bsz",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    ],
)
def test_a_default_is_the_one_that_verl_composes(key):
    config = composed("verl.trainer.main_ppo", [])
    assert OmegaConf.select(config, key, throw_on_missing=True) == verl_default(key)


def test_gradients_are_clipped_as_published():
    """The paper's 1.0 is verl's default, under a name for each engine, so no overlay says it."""
    for engine, key in (("dp", "actor.grad_clip"), ("megatron", "actor.optim.clip_grad")):
        config = composed("verl.trainer.main_ppo", [f"model_engine={engine}"])
        assert OmegaConf.select(config.actor_rollout_ref, key, throw_on_missing=True) == 1.0


def test_stage_actor_takes_the_keys_that_dataclasses_check(commands):
    """verl turns sections into dataclasses in its workers, where a key added by `+` can still be refused."""
    from verl.utils.config import omega_conf_to_dataclass

    for kind in ("grpo", "opd"):
        _, _, module, *overrides = commands[kind]
        config = composed(module, overrides)
        omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        omega_conf_to_dataclass(config.actor_rollout_ref.rollout)


def test_keys_read_by_the_opd_trainer_exist():
    config = composed("verl.trainer.main_ppo", [])
    for key in (
        "trainer.v1.trainer_mode",
        "algorithm.adv_estimator",
        "algorithm.use_kl_in_reward",
        "algorithm.rollout_correction",
        "actor_rollout_ref.actor.use_kl_loss",
        "actor_rollout_ref.model.lora_rank",
        "actor_rollout_ref.ref.log_prob_use_dynamic_bsz",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
        "reward.num_workers",
        "reward.reward_model.enable",
        "distillation.enabled",
    ):
        *parents, last = key.split(".")
        section = OmegaConf.select(config, ".".join(parents))
        assert section is not None and last in section, f"verl's configuration no longer has {key}"
