"""Check parallel sizes against the cluster, the batches and the models.

verl, Megatron and vLLM would refuse the same sizes, some of them only in their workers. Every error names the key and
valid values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.recipe.schema import Recipe
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.sizing.rank_batches import check_batches
from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Engine, MicroBatch, Rollout, Training
from verl_s2d.workflow.graph import Node


def check_layout(recipe: Recipe, node: Node, settings: Mapping[str, Any], models: Models) -> None:
    """Check a training stage by its composed configuration. Raises as `check_training` does."""
    training = node.stage.demand(settings, recipe.data.prompt_tokens + node.stage.response_tokens(node))
    check_training(node.name, training, models.shape(node), models.largest_frozen(node), recipe.cluster)


def check_training(
    name: str, training: Training, model: ModelShape | None, teacher: ModelShape | None, cluster: Cluster
) -> None:
    """Check a training stage; checks that need a shape are skipped if it is None.

    Raises:
        UserError: the first size that does not fit.
    """
    engines = [(training.actor, model), (training.reference, teacher or model)]
    for engine, shape in engines:
        if engine is not None:
            check_parallel_sizes(name, engine)
            if shape is not None:
                _check_heads(name, engine, shape)
    _check_same_layout(name, training)
    _check_batches(name, training)
    if training.rollout is not None:
        check_rollout(name, training.rollout, model, cluster)


def check_rollout(name: str, rollout: Rollout, model: ModelShape | None, cluster: Cluster) -> None:
    """Check vLLM's parallel sizes against the cluster and the model's heads."""
    key, tensor = f"{rollout.section}.tensor_model_parallel_size", rollout.tensor
    _require_divides(name, key, tensor, rollout.world, "GPUs (cluster.nodes x cluster.gpus_per_node)")
    _require_divides(
        name,
        f"{rollout.section}.pipeline_model_parallel_size",
        rollout.pipeline,
        rollout.world // tensor,
        "GPUs that tensor parallelism leaves",
    )
    node = cluster.gpus_per_node
    if tensor % node and node % tensor:
        _refuse(
            f"{name}: {tensor} GPUs are neither a part of a node's {node} nor whole nodes",
            key,
            tensor,
            f"Choose a divisor of {node} (cluster.gpus_per_node).",
        )
    if model is not None:
        _check_tensor(name, key, tensor, model)


def check_sampler(node: Node, model: ModelShape | None, cluster: Cluster) -> None:
    """Check the tensor parallelism of a stage that only samples, whose engines each use GPUs of one node.

    Raises:
        UserError: it does not divide the node's GPUs or the model's heads.
    """
    key, tensor = f"{node.stage.section}.tensor_parallel_size", node.operations["tensor_parallel_size"]
    _require_divides(node.name, key, tensor, cluster.gpus_per_node, "GPUs of a node (cluster.gpus_per_node)")
    if model is not None:
        _check_tensor(node.name, key, tensor, model)


def check_parallel_sizes(name: str, engine: Engine) -> None:
    """Raise UserError for the first parallel size of an engine that does not divide its GPUs."""
    rest = engine.world
    for size_name, size in (
        ("tensor_model_parallel_size", engine.tensor),
        ("pipeline_model_parallel_size", engine.pipeline),
        ("context_parallel_size", engine.context),
        ("ulysses_sequence_parallel_size", engine.ulysses),
    ):
        if rest % size:
            _refuse(
                f"{name}: {engine.world} GPUs (cluster.nodes x cluster.gpus_per_node) are not a whole number of groups "
                "that work on the same sequences",
                f"{engine.section}.{size_name}",
                size,
                f"Choose sizes whose product divides {engine.world}: this one has to divide {rest}.",
            )
        rest //= size
    if engine.backend == "fsdp":
        _require_divides(name, f"{engine.section}.fsdp_size", engine.shards, engine.world, "GPUs")


def _check_heads(name: str, engine: Engine, shape: ModelShape) -> None:
    if engine.backend == "fsdp":
        key, size = f"{engine.section}.ulysses_sequence_parallel_size", engine.ulysses
        _require_divides(name, key, size, shape.heads, "attention heads")
        _require_either(name, key, size, shape.kv_heads)
        return
    key = f"{engine.section}.tensor_model_parallel_size"
    _check_tensor(name, key, engine.tensor, shape)
    _require_divides(name, key, engine.tensor, shape.intermediate, "columns of the feed-forward layers")
    _require_divides(name, key, engine.tensor, shape.vocabulary, "rows of the embedding")
    _require_divides(name, f"{engine.section}.pipeline_model_parallel_size", engine.pipeline, shape.layers, "layers")


def _check_tensor(name: str, key: str, size: int, shape: ModelShape) -> None:
    _require_divides(name, key, size, shape.heads, "attention heads")
    _require_either(name, key, size, shape.kv_heads)


def _check_same_layout(name: str, training: Training) -> None:
    """Require equal parallel sizes of actor and reference: Megatron makes its groups once per process."""
    actor, other = training.actor, training.reference
    if other is None or actor.backend != "megatron":
        return
    for what in ("tensor", "pipeline", "context"):
        ours, theirs = getattr(actor, what), getattr(other, what)
        if ours != theirs:
            size_name = "context_parallel_size" if what == "context" else f"{what}_model_parallel_size"
            _refuse(
                f"{name}: the two engines of a worker share Megatron's groups, and the actor's size is {ours}",
                f"{other.section}.{size_name}",
                theirs,
                f"Set it to {ours}.",
            )


def _check_batches(name: str, training: Training) -> None:
    actor, reference = training.actor, training.reference
    passes = ((training.update, actor), (training.scoring, actor), (training.reference_scoring, reference))
    # With adapters the student's own engine is the reference, in the batches of its log-probabilities.
    scored = [(micro, engine) for micro, engine in passes[1:] if micro is not None and engine is not None]
    warmup = training.rollout is None
    check_batches(name, actor, training.batch, training.mini_batch, training.update, scored, warmup=warmup)
    for micro, engine in passes:
        if micro is not None:
            _check_budget(name, micro, engine or actor, training.longest)


def _check_budget(name: str, batch: MicroBatch, engine: Engine, longest: int) -> None:
    needed = -(-longest // engine.sequence_shards)
    if batch.tokens is not None and batch.tokens < needed:
        _refuse(
            f"{name}: a sequence may have {longest} tokens (data.prompt_tokens + data.response_tokens), more than a "
            "micro-batch may hold",
            batch.key,
            batch.tokens,
            f"Give at least {needed}.",
        )


def _require_divides(name: str, key: str, size: int, of: int, what: str) -> None:
    if size < 1 or of % size:
        _refuse(f"{name}: {of} {what} do not divide by {size}", key, size, f"Choose a divisor of {of}.")


def _require_either(name: str, key: str, size: int, heads: int) -> None:
    if heads % size and size % heads:
        _refuse(
            f"{name}: {heads} heads of keys and values neither divide by {size} nor can be copied to as many GPUs",
            key,
            size,
            f"Choose a divisor or a multiple of {heads}.",
        )


def _refuse(problem: str, key: str, value: object, remedy: str) -> None:
    raise UserError(f"{problem}.", key=key, value=value, remedy=remedy)
