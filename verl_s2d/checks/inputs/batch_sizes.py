"""Refuse batch sizes that verl would reject, most of them only after minutes of start-up and a first rollout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verl_s2d.errors import Faults, UserError
from verl_s2d.sizing.layouts import check_training
from verl_s2d.stages.prepare.slice_sizes import slice_size
from verl_s2d.stages.shared.batch_settings import MINI, TRAIN, batch_setting, require_batch_sizes
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.stages.shared.training_stage import TrainingStage
from verl_s2d.stages.shared.verl_trainer import VerlTrainerStage
from verl_s2d.stages.warmup.stage import Warmup, caches_of
from verl_s2d.verl_settings.overrides import value_of
from verl_s2d.workflow.graph import Node, canonical_json
from verl_s2d.workflow.plan import Plan

_MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
_SCORES = "actor_rollout_ref.{}.log_prob_micro_batch_size_per_gpu"
_DYNAMIC = "actor_rollout_ref.actor.use_dynamic_bsz"
_DYNAMIC_SCORES = "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz"
_WARMUP_MICRO = "data.micro_batch_size_per_gpu"


def check_batches(plan: Plan, nodes: Iterable[Node]) -> None:
    """Raise UserError for stages whose batch sizes contradict each other or their slice."""
    faults = Faults()
    for node in nodes:
        with faults.collected():
            if isinstance(node.stage, VerlTrainerStage):
                _check_rl(node, slice_size(plan, node))
            elif isinstance(node.stage, Warmup):
                _check_warmup(node, [slice_size(plan, cache) for cache in caches_of(node)])
    faults.raise_found()


def check_engines(plan: Plan, nodes: Iterable[Node]) -> None:
    """Raise UserError for stages whose engine the device does not have, or whose sizes do not fit the cluster."""
    checked: set[str] = set()
    faults = Faults()
    for node in nodes:
        if isinstance(node.stage, TrainingStage) and _known_engine(node):
            # Composing takes a tenth of a second; stages of other rows and seeds differ in paths and steps only.
            longest = plan.recipe.data.prompt_tokens + node.stage.response_tokens(node)
            layout = canonical_json([node.kind, merged_verl(node), node.settings.get("signal"), longest])
            if layout not in checked:
                checked.add(layout)
                with faults.collected():
                    _require_engine(node, plan.context.device)
                    training = node.stage.demand(node.stage.composed_settings(node, plan.context), longest)
                    check_training(node.name, training, None, None, plan.context.cluster)
    faults.raise_found()


def _check_rl(node: Node, problems: int | None) -> None:
    require_batch_sizes(node)
    train, mini = batch_setting(node, TRAIN), batch_setting(node, MINI)
    _require_fits(node, train, problems, "problems in its slice")
    if mini > train:
        raise UserError(
            f"{node.name}: the mini-batch is larger than the batch of {train} prompts.",
            key=MINI,
            value=mini,
            remedy=f"At most {train} ({TRAIN}).",
        )
    if train % mini:
        raise UserError(
            f"{node.name}: the batch of {train} prompts is not a whole number of mini-batches.",
            key=MINI,
            value=mini,
            remedy=f"Choose a divisor of {train} ({TRAIN}).",
        )
    verl, dynamic = merged_verl(node), bool(batch_setting(node, _DYNAMIC))
    if bool(value_of(verl, _DYNAMIC_SCORES, dynamic)) != dynamic:
        raise UserError(
            f"{node.name}: verl's actor splits updates and log-probabilities into micro-batches of the same kind.",
            key=_DYNAMIC_SCORES,
            value=not dynamic,
            remedy="Leave it out; it follows actor_rollout_ref.actor.use_dynamic_bsz.",
        )
    if dynamic:
        _refuse_sequences(node, verl, (_MICRO, *(_SCORES.format(role) for role in ("rollout", "ref"))), _DYNAMIC)
    else:
        _require_micro_batch(node, _MICRO)
        _require_micro_batch(node, _SCORES.format("rollout"))
    if _has_reference(node) and not value_of(verl, "actor_rollout_ref.ref.log_prob_use_dynamic_bsz", dynamic):
        _require_micro_batch(node, _SCORES.format("ref"))


def _check_warmup(node: Node, prompts: Sequence[int | None]) -> None:
    """Check the warmup's batch against its caches; prompts: the number of each cache's."""
    key, dynamic, verl = _WARMUP_MICRO, "data.use_dynamic_bsz", merged_verl(node)
    sizes = [cache.stage.sequences(cache, count) for cache, count in zip(caches_of(node), prompts, strict=True)]
    batch = value_of(node.settings["verl"], TRAIN)
    if batch is not None:
        _require_fits(node, batch, None if None in sizes else sum(sizes), "cached rollouts")
    if value_of(verl, dynamic):
        _refuse_sequences(node, verl, (key,), dynamic)


def _require_engine(node: Node, device: str) -> None:
    """Raise UserError for Megatron's engine on a CPU, which verl does not have."""
    key = "model_engine" if isinstance(node.stage, VerlTrainerStage) else "engine"
    if device == "cpu" and value_of(merged_verl(node), key) == "megatron":
        raise UserError(
            f"{node.name}: verl's Megatron engine needs accelerators.",
            key=key,
            value="megatron",
            remedy="Set cluster.device: cuda, leave the key out for FSDP2, or try the recipe on a CPU with --shrink.",
        )


def _known_engine(node: Node) -> bool:
    """Tell whether the layout of the stage's engine is known here."""
    return value_of(merged_verl(node), "model_engine", "dp") in ("dp", "fsdp", "megatron")


def _require_fits(node: Node, batch: int, available: int | None, what: str) -> None:
    if available is not None and batch > available:
        raise UserError(
            f"{node.name}: a batch is larger than the {available} {what}.",
            key=TRAIN,
            value=batch,
            remedy=f"At most {available}, or use more labels (data.labels).",
        )


def _has_reference(node: Node) -> bool:
    """Tell whether the stage has a reference engine, for a teacher or a KL penalty."""
    keys = ("actor_rollout_ref.actor.use_kl_loss", "algorithm.use_kl_in_reward")
    return bool(node.stage.frozen_roles(node)) or any(value_of(node.settings["verl"], key, False) for key in keys)


def _refuse_sequences(node: Node, verl: Mapping[str, Any], keys: Iterable[str], dynamic: str) -> None:
    """Raise UserError for a micro-batch size in sequences if micro-batches are split by tokens."""
    for key in keys:
        if (micro := value_of(verl, key)) is not None:
            raise UserError(
                f"{node.name}: micro-batches are cut by tokens, so a size in sequences has no effect.",
                key=key,
                value=micro,
                remedy=f"Leave it out, or set {dynamic}: false.",
            )


def _require_micro_batch(node: Node, key: str) -> None:
    """Require a size in sequences. verl's start-up check also accepts the older keys without _per_gpu; its workers do
    not."""
    micro = value_of(merged_verl(node), key)
    if not isinstance(micro, int) or micro < 1:
        raise UserError(
            f"{node.name}: verl needs a micro-batch size.",
            key=key,
            value=micro,
            remedy="Set it (it bounds memory, not results; 1 always works), or use dynamic batches "
            "(actor_rollout_ref.actor.use_dynamic_bsz).",
        )
