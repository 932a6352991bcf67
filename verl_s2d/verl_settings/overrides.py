"""Read, merge and write hydra overrides as flat maps `dotted.key: value`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from verl_s2d.errors import UserError

_PLAIN = re.compile(r"[A-Za-z_/][\w/.:@%+-]*", re.ASCII)
_INTERPOLATION = re.compile(r"(\\*)\$\{")
_NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
_RESERVED_WORDS = {"null", "true", "false", "none", "nan", "inf", "yes", "no", "on", "off"}

_OPERATIONAL = (
    "trainer.logger",
    "trainer.project_name",
    "trainer.experiment_name",
    "trainer.max_actor_ckpt_to_keep",
    "trainer.max_ckpt_to_keep",
    "trainer.ray_wait_register_center_timeout",
    "ray_kwargs.",
    "transfer_queue.",
    "global_profiler.",
    "reward.num_workers",
    "actor_rollout_ref.rollout.agent.num_workers",
    "data.dataloader_num_workers",
    "data.filter_overlong_prompts_workers",
)
"""Keys (a trailing dot: all keys below) without influence on the result: changing them must not retrain anything. A key
in doubt is not in this list."""
MICRO_BATCHING = (
    "actor_rollout_ref.actor.use_dynamic_bsz",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
    "data.use_dynamic_bsz",
    "data.micro_batch_size_per_gpu",
    "data.max_token_len_per_gpu",
)
"""Keys that cut a batch into micro-batches: operational unless `micro_batches_matter`."""
_SEQUENCES = (
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
)
_WARMUP_SEQUENCES = "data.micro_batch_size_per_gpu"
_OPERATIONAL_KEYS = frozenset(key for key in _OPERATIONAL if not key.endswith("."))
_OPERATIONAL_PREFIXES = tuple(key for key in _OPERATIONAL if key.endswith("."))


@functools.cache
def overlay(name: str, variant: str = "") -> Mapping[str, Any]:
    """Read an overlay: the flat map of settings on which a stage or platform departs from verl's defaults.

    Args:
        name: a stage's folder, or `cpu`.
        variant: selects overlay-<variant>.yaml in that folder.

    Returns:
        Dotted key -> value; empty when there is no such file.
    """
    folder = "platforms/cpu" if name == "cpu" else f"stages/{name}"
    file = resources.files("verl_s2d").joinpath(folder, f"overlay-{variant}.yaml" if variant else "overlay.yaml")
    return (yaml.safe_load(file.read_text()) or {}) if file.is_file() else {}


def device_overlay(name: str, device: str) -> Mapping[str, Any]:
    """Read the settings on which a stage departs from verl's defaults because of the device; empty on `cuda`.

    Args:
        name: a stage's folder.
    """
    # The warmup's configuration has none of verl's RL keys.
    return overlay("cpu", "warmup" if name == "warmup" else "") if device == "cpu" else {}


def bare_key(key: str) -> str:
    """Strip hydra's `+`, `++` or `~` from a dotted key."""
    return key.lstrip("+~")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge layers, one entry per key; later layers win. A key without prefix keeps the `+` of an earlier layer."""
    merged: dict[str, tuple[str, Any]] = {}
    for layer in layers:
        for key, value in layer.items():
            bare = bare_key(key)
            written = merged[bare][0] if key == bare and bare in merged else key
            merged[bare] = (written, value)
    return dict(merged.values())


def split_operational(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split overrides into (decisive, operational): those that determine the result and those that do not."""
    keys = _OPERATIONAL_KEYS if micro_batches_matter(overrides) else _OPERATIONAL_KEYS.union(MICRO_BATCHING)

    def operational(key: str) -> bool:
        bare = bare_key(key)
        return bare in keys or bare.startswith(_OPERATIONAL_PREFIXES)

    decisive = {k: v for k, v in overrides.items() if not operational(k)}
    return decisive, {k: v for k, v in overrides.items() if operational(k)}


def micro_batches_matter(overrides: Mapping[str, Any]) -> bool:
    """Report whether the loss depends on which sequences share a micro-batch.

    A sum over tokens or sequences that is divided by numbers of the global batch does not: verl's vanilla policy loss
    and the exact divergences. Three settings use a number of the micro-batch instead: a policy loss that selects tokens
    (every mode except vanilla counts), weights of rollout correction computed inside the loss, and a norm by the padded
    width of the responses.
    """

    def chosen(key: str, default: Any = None) -> Any:
        return value_of(overrides, key, default)

    width = chosen("actor_rollout_ref.actor.loss_agg_mode") == "seq-mean-token-sum-norm"
    return (
        chosen("actor_rollout_ref.actor.policy_loss.loss_mode", "vanilla") != "vanilla"
        or bool(chosen("algorithm.rollout_correction.bypass_mode"))
        or (width and chosen("actor_rollout_ref.actor.loss_scale_factor") is None)
    )


def by_sequences(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Cut micro-batches by sequences where a recipe gives their size in sequences and does not ask for tokens.

    Log-probabilities take the size of the updates where they have none of their own.

    Args:
        chosen: the recipe's keys of verl.
    """
    warmup = value_of(chosen, _WARMUP_SEQUENCES)
    sizes = {key: value_of(chosen, key) for key in _SEQUENCES}
    if warmup is not None and value_of(chosen, "data.use_dynamic_bsz") is None:
        return {"data.use_dynamic_bsz": False}
    dynamic = "actor_rollout_ref.actor.use_dynamic_bsz"
    if all(size is None for size in sizes.values()) or value_of(chosen, dynamic) is not None:
        return {}
    of_updates = sizes[_SEQUENCES[0]]
    return {dynamic: False, **(dict.fromkeys(_SEQUENCES[1:], of_updates) if of_updates is not None else {})}


def value_of(overrides: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Look up the value of a dotted key, whatever its prefix."""
    for written, value in overrides.items():
        if bare_key(written) == key:
            return value
    return default


def hydra_value(value: Any) -> str:
    """Write a Python value in hydra's command-line grammar; text that hydra would read as another type is quoted.

    Interpolations stay what they are.

    Raises:
        UserError: a key inside the value that hydra's grammar has no spelling for.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(k)}:{hydra_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(hydra_value(v) for v in value) + "]"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED_WORDS:
        return text
    # Hydra: a backslash is literal inside quotes unless it stands before a quote, so only those runs are doubled.
    escaped = re.sub(r"(\\*)'", lambda m: m.group(1) * 2 + "\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"


def without_interpolation(value: Any) -> Any:
    """Escape what OmegaConf would replace in the text of a value, so that it arrives as it is."""
    if isinstance(value, Mapping):
        return {key: without_interpolation(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_interpolation(v) for v in value]
    return _INTERPOLATION.sub(lambda m: m.group(1) * 2 + "\\${", value) if isinstance(value, str) else value


def _key(key: Any) -> str:
    """Write a key of a mapping, which hydra takes unquoted only."""
    if isinstance(key, int) and not isinstance(key, bool):
        return repr(key)
    if isinstance(key, str) and _NAME.fullmatch(key) and key.lower() not in _RESERVED_WORDS:
        return key
    raise UserError(
        "verl's command line cannot carry a key of this form inside a value.",
        key="verl",
        value=key,
        remedy="Use letters, digits, _ and - in the names of keys, and a letter first.",
    )


def hydra_arguments(overrides: Mapping[str, Any]) -> list[str]:
    """Write one command-line argument per override."""
    return [key if key.startswith("~") else f"{key}={hydra_value(value)}" for key, value in overrides.items()]
