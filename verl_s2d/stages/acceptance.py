"""Check whether verl accepts a stage's command: compose its configuration, then run verl's checks and ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from verl.trainer.main_ppo import auto_set_device, need_critic, need_reference_policy, validate_config
from verl.utils.config import omega_conf_to_dataclass

from verl_s2d.errors import UserError
from verl_s2d.stages.ending.until_config import read_until
from verl_s2d.stages.grpo.credit_config import measured_by, read_credit_config
from verl_s2d.stages.opd.config import read_opd_config
from verl_s2d.stages.shared.save_on_request import read_save_minutes
from verl_s2d.stages.warmup.config_checks import check_settings
from verl_s2d.verl_settings.engine_checks import check_weights
from verl_s2d.verl_settings.lora_checks import check_lora
from verl_s2d.verl_settings.sampling_checks import check_sampling


def examine(argv: Sequence[str]) -> dict[str, Any]:
    """Return {refused, settings} of a command `python -m MODULE overrides...`; both None for other modules.

    `refused` is None or {problem, key, value, remedy}; `settings` is the resolved configuration, None where it cannot
    be composed. Needs neither models nor data nor an accelerator.
    """
    module, overrides = argv[2], list(argv[3:])
    answer: dict[str, Any] = {"refused": None, "settings": None}
    if module not in _CHECKS:
        return answer
    package, name, check = _CHECKS[module]
    try:
        with initialize_config_module(package, version_base=None):
            config = compose(name, overrides)
        answer["settings"] = OmegaConf.to_container(config, resolve=True)
        check(config)
    except Exception as error:
        answer["refused"] = _refusal(error)
    return answer


def _refusal(error: Exception) -> dict[str, Any]:
    if isinstance(error, UserError):
        return {"problem": error.problem, "key": error.key, "value": repr(error.value), "remedy": error.remedy}
    # The first line of hydra's message names the error, that of its cause the reason.
    messages = [str(e).strip().partition("\n")[0] for e in (error, error.__cause__) if e is not None]
    problem = f"{type(error).__name__}: {'; '.join(filter(None, dict.fromkeys(messages)))}"
    return {"problem": problem, "key": None, "value": None, "remedy": None}


def _check_rl(config: DictConfig) -> None:
    """Run main_ppo's start-up checks, then our trainer's, then those that apply to workflow stages only."""
    auto_set_device(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    read_save_minutes(config)
    check_sampling(config.actor_rollout_ref.rollout, "actor_rollout_ref.rollout")
    # verl itself reads these only in its workers.
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    for section in ("fsdp_config", "megatron"):
        if config.actor_rollout_ref.ref.get(section) is not None:
            omega_conf_to_dataclass(config.actor_rollout_ref.ref[section])
    if config.trainer.v1.trainer_mode == "s2d_opd":
        read_until(config, read_opd_config(config).measured)
    else:
        read_until(config, measured_by(config) if config.trainer.v1.trainer_mode == "s2d_grpo" else ())
        if config.trainer.v1.trainer_mode == "s2d_grpo":
            read_credit_config(config)
        worker = config.actor_rollout_ref
        check_lora(worker.model, worker.actor.strategy, "actor_rollout_ref.model", worker.rollout.name)
    for role in ("actor", "ref"):
        key = f"actor_rollout_ref.{role}.megatron"
        check_weights(OmegaConf.select(config, key) or {}, key)


def _check_warmup(config: DictConfig) -> None:
    check_settings(config)
    for section in (config.engine, config.optim):
        omega_conf_to_dataclass(section)


_CHECKS = {
    "verl.trainer.main_ppo": ("verl.trainer.config", "ppo_trainer", _check_rl),
    "verl_s2d.stages.warmup.trainer": ("verl_s2d.stages.warmup", "s2d_warmup", _check_warmup),
}
