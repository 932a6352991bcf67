"""Batch sizes that verl would reject, most of them only after minutes of start-up and a first rollout."""

from __future__ import annotations

from collections.abc import Iterable

from verl_s2d.errors import UserError
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.overrides import value_of
from verl_s2d.workflow.planning import Plan
from verl_s2d.workflow.preflight.data import slice_size
from verl_s2d.workflow.stages.batch_settings import MINI, TRAIN, N, batch_setting, require_batch_sizes

_MICRO = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"


def check_batches(plan: Plan, nodes: Iterable[Node]) -> None:
    """Raises UserError for the first stage whose batch sizes do not fit together, its slice or the cluster."""
    gpus = plan.context.cluster.nodes * plan.context.cluster.gpus_per_node
    for node in nodes:
        if node.kind in ("grpo", "opd"):
            _check_rl(node, slice_size(plan, node), gpus)
        elif node.kind == "warmup":
            rollouts = node.inputs["rollouts"]
            prompts = slice_size(plan, rollouts)
            cached = None if prompts is None else prompts * rollouts.settings["per_prompt"]
            batch = value_of(node.settings["verl"], TRAIN)
            if batch is not None:
                _require_fits(node, batch, cached, "cached rollouts")
                _check_warmup_micro_batches(node, batch, gpus)


def _check_rl(node: Node, problems: int | None, gpus: int) -> None:
    require_batch_sizes(node)
    train, mini, micro, n = (batch_setting(node, key) for key in (TRAIN, MINI, _MICRO, N))
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
    if mini * n % gpus:
        raise UserError(
            f"{node.name}: a mini-batch has {mini} x {n} sequences, which do not divide among {gpus} GPUs.",
            key=MINI,
            value=mini,
            remedy=f"Make {MINI} x {N} a multiple of {gpus}.",
        )
    if batch_setting(node, "actor_rollout_ref.actor.use_dynamic_bsz"):
        return
    if micro is None:
        raise UserError(
            f"{node.name}: verl needs a micro-batch size.", key=_MICRO, value=None, remedy="Set it (1 always works)."
        )
    for section in ("rollout", "ref") if _has_reference(node) else ("rollout",):
        _require_log_prob_batch(node, f"actor_rollout_ref.{section}.log_prob_micro_batch_size")
    per_gpu = mini * n // gpus
    if per_gpu % micro:
        raise UserError(
            f"{node.name}: {per_gpu} sequences of a mini-batch on each GPU are not a whole number of micro-batches.",
            key=_MICRO,
            value=micro,
            remedy=f"Choose a divisor of {per_gpu}.",
        )


def _check_warmup_micro_batches(node: Node, batch: int, gpus: int) -> None:
    key, verl = "data.micro_batch_size_per_gpu", node.settings["verl"]
    ranks = max(1, gpus // value_of(verl, "engine.ulysses_sequence_parallel_size", 1))
    if batch % ranks:
        raise UserError(
            f"{node.name}: a batch of {batch} rollouts does not divide among {ranks} data-parallel ranks.",
            key=TRAIN,
            value=batch,
            remedy=f"Choose a multiple of {ranks}.",
        )
    micro = value_of(verl, key)
    if not value_of(verl, "data.use_dynamic_bsz") and micro and batch // ranks % micro:
        raise UserError(
            f"{node.name}: the {batch // ranks} rollouts of a rank are not a whole number of micro-batches.",
            key=key,
            value=micro,
            remedy=f"Choose a divisor of {batch // ranks}, or set data.use_dynamic_bsz: true.",
        )


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
    return node.kind == "opd" or any(value_of(node.settings["verl"], key, False) for key in keys)


def _require_log_prob_batch(node: Node, key: str) -> None:
    if all(value_of(node.settings["verl"], name) is None for name in (key, f"{key}_per_gpu")):
        raise UserError(
            f"{node.name}: verl needs a batch size for log-probabilities.",
            key=f"{key}_per_gpu",
            value=None,
            remedy="Set it (it bounds memory, not results), or use actor_rollout_ref.actor.use_dynamic_bsz.",
        )
