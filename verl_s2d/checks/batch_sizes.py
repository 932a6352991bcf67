"""Batch sizes that verl would reject, most of them only after minutes of start-up and a first rollout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.sizing import rank_batches as division
from verl_s2d.sizing.layouts import check_parallel_sizes
from verl_s2d.stages.prepare.slice_sizes import slice_size
from verl_s2d.stages.shared.batch_settings import MINI, TRAIN, N, batch_setting, require_batch_sizes
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.stages.shared.verl_trainer import VerlTrainerStage
from verl_s2d.stages.warmup.stage import Warmup
from verl_s2d.verl_settings.overrides import value_of
from verl_s2d.verl_settings.stage_sizes import Engine, MicroBatch
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan

_MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"
_SCORES = "actor_rollout_ref.{}.log_prob_micro_batch_size_per_gpu"
_DYNAMIC = "actor_rollout_ref.actor.use_dynamic_bsz"
_DYNAMIC_SCORES = "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz"
_ULYSSES = "ulysses_sequence_parallel_size"


def check_batches(plan: Plan, nodes: Iterable[Node]) -> None:
    """Raises UserError for the first stage whose batch sizes do not fit together, its slice or the cluster."""
    gpus = plan.context.cluster.nodes * plan.context.cluster.gpus_per_node
    for node in nodes:
        if isinstance(node.stage, VerlTrainerStage):
            _check_rl(node, slice_size(plan, node), gpus)
        elif isinstance(node.stage, Warmup):
            rollouts = node.inputs["rollouts"]
            prompts = slice_size(plan, rollouts)
            cached = rollouts.stage.sequences(rollouts, prompts)
            batch = value_of(node.settings["verl"], TRAIN)
            if batch is not None:
                _require_fits(node, batch, cached, "cached rollouts")
                _check_warmup_micro_batches(node, batch, gpus)


def _check_rl(node: Node, problems: int | None, gpus: int) -> None:
    require_batch_sizes(node)
    train, mini, n = (batch_setting(node, key) for key in (TRAIN, MINI, N))
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
    verl, actor = merged_verl(node), _engine(node, "actor", gpus)
    dynamic = bool(batch_setting(node, _DYNAMIC))
    if bool(value_of(verl, _DYNAMIC_SCORES, dynamic)) != dynamic:
        raise UserError(
            f"{node.name}: verl's actor cuts updates and log-probabilities into micro-batches of one kind.",
            key=_DYNAMIC_SCORES,
            value=not dynamic,
            remedy="Leave it out; it follows actor_rollout_ref.actor.use_dynamic_bsz.",
        )
    if dynamic:
        _refuse_sequences(node, verl, (_MICRO, *(_SCORES.format(role) for role in ("rollout", "ref"))), _DYNAMIC)
    update, scored = MicroBatch(None, None, _MICRO), []
    if not dynamic:
        update = _micro_batch(node, _MICRO)
        scored = [(_micro_batch(node, _SCORES.format("rollout")), actor)]
    if _has_reference(node) and not value_of(verl, "actor_rollout_ref.ref.log_prob_use_dynamic_bsz", dynamic):
        reference = _micro_batch(node, _SCORES.format("ref"))
        adapter = any(value_of(verl, f"actor_rollout_ref.model.{key}") for key in ("lora_rank", "lora.rank"))
        if "teacher" in node.sources or not adapter:
            # Otherwise verl scores with the student without its adapters, in the actor's own engine.
            scored.append((reference, _engine(node, "ref", gpus)))
    # An exact divergence asks for no log-probabilities.
    scored = scored if node.settings.get("objective", "advantage") == "advantage" else []
    _require_divides(node, actor, train * n, mini * n, update, scored)


def _check_warmup_micro_batches(node: Node, batch: int, gpus: int) -> None:
    key, dynamic, verl = "data.micro_batch_size_per_gpu", "data.use_dynamic_bsz", merged_verl(node)
    micro = value_of(verl, key)
    if value_of(verl, dynamic):
        _refuse_sequences(node, verl, (key,), dynamic)
    _require_divides(node, _engine(node, None, gpus), batch, batch, MicroBatch(micro, None, key), warmup=True)


def _require_divides(
    node: Node,
    actor: Engine | None,
    batch: int,
    mini_batch: int,
    update: MicroBatch,
    scored: Iterable[tuple[MicroBatch, Engine]] = (),
    warmup: bool = False,
) -> None:
    if actor is not None:
        check_parallel_sizes(node.name, actor)
        division.check_batches(node.name, actor, batch, mini_batch, update, scored, warmup=warmup)


def _engine(node: Node, role: str | None, gpus: int) -> Engine | None:
    """How a stage's engine lies on the GPUs, of the actor or the reference; None for an engine that we do not know."""
    verl, prefix = node.settings["verl"], f"actor_rollout_ref.{role}" if role else "engine"
    kind = value_of(verl, "model_engine" if role else "engine", "dp")
    strategy = value_of(verl, "actor_rollout_ref.actor.strategy" if role else "engine.strategy", kind)

    def size(key: str, default: int = 1) -> int:
        value = value_of(verl, key, default)
        return value if isinstance(value, int) and value > 0 else 1

    if "megatron" in (kind, strategy):
        # The reference's sizes have to be the actor's.
        section = "actor_rollout_ref.actor.megatron" if role else prefix
        tensor, pipeline, context = (
            size(f"{section}.{name}_size")
            for name in ("tensor_model_parallel", "pipeline_model_parallel", "context_parallel")
        )
        return Engine(section, "megatron", gpus, tensor=tensor, pipeline=pipeline, context=context)
    if kind not in ("dp", "fsdp") or strategy not in ("dp", "fsdp", "fsdp2"):
        return None
    section = f"{prefix}.fsdp_config" if role else prefix
    ulysses = size(f"{section}.{_ULYSSES}")
    if role:
        # verl's older key beside fsdp_config, which the reference takes over, wins where it is more than 1.
        older = size(f"{prefix}.{_ULYSSES}", size(f"actor_rollout_ref.actor.{_ULYSSES}"))
        ulysses = older if older > 1 else ulysses
    return Engine(section, "fsdp", gpus, ulysses=ulysses)


def _require_fits(node: Node, batch: int, available: int | None, what: str) -> None:
    if available is not None and batch > available:
        raise UserError(
            f"{node.name}: a batch is larger than the {available} {what}.",
            key=TRAIN,
            value=batch,
            remedy=f"At most {available}, or use more labels (data.labels).",
        )


def _has_reference(node: Node) -> bool:
    """Whether the stage has a reference engine: the teacher's, or that of a KL penalty."""
    keys = ("actor_rollout_ref.actor.use_kl_loss", "algorithm.use_kl_in_reward")
    return "teacher" in node.sources or any(value_of(node.settings["verl"], key, False) for key in keys)


def _refuse_sequences(node: Node, verl: Mapping[str, Any], keys: Iterable[str], dynamic: str) -> None:
    """Raises UserError for a micro-batch size in sequences where micro-batches are cut by tokens."""
    for key in keys:
        if (micro := value_of(verl, key)) is not None:
            raise UserError(
                f"{node.name}: micro-batches are cut by tokens, so a size in sequences has no effect.",
                key=key,
                value=micro,
                remedy=f"Leave it out, or set {dynamic}: false.",
            )


def _micro_batch(node: Node, key: str) -> MicroBatch:
    """verl's check at the start takes the older keys without _per_gpu as well; its workers do not."""
    micro = value_of(merged_verl(node), key)
    if not isinstance(micro, int) or micro < 1:
        raise UserError(
            f"{node.name}: verl needs a micro-batch size.",
            key=key,
            value=micro,
            remedy="Set it (it bounds memory, not results; 1 always works), or use dynamic batches "
            "(actor_rollout_ref.actor.use_dynamic_bsz).",
        )
    return MicroBatch(micro, None, key)
