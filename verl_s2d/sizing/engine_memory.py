"""Estimate parameters, gradients and optimizer states of a model in verl's training engines, in bytes on one GPU.

FSDP2 (torch's fully_shard: ZeRO stage 3 of Rajbhandari et al. 2020) shards everything over F ranks. Parameters,
gradients and both of Adam's moments have `model_dtype` (m bytes; fp32 for trained models):
m P/F + m P_t/F + 2 m P_t/F for P parameters of which P_t are trained. Layers are all-gathered in the compute dtype (b
bytes), two at a time because of prefetching; their gradients (b) are reduced in fp32. An update needs a temporary of a
moment's size, m P_t/F (torch's foreach AdamW). With no_sync, 4 P_t bytes of unsharded gradients accumulate until the
last micro-batch.

Megatron (documentation of its distributed optimizer): bf16 parameters and fp32 gradients, 6 bytes for each of the
P/(TP PP) parameters of a GPU; fp32 parameters and both moments, 12 bytes, sharded over DP CP ranks if the optimizer is
distributed.

LoRA: P_t is r (in + out) for every adapted matrix (Hu et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import LORA_ALL, Engine

_FP32 = 4


@dataclass(frozen=True)
class EngineMemory:
    """Bytes on one GPU.

    Attributes:
        parameters, gradients, optimizer: resident while the engine is active; 0 for a streamed engine, whose shards
            stay on the host.
        accumulated: unsharded gradients until the last micro-batch; freed once `gradients` exist.
        late: the part of `gradients` that a backward pass makes last, of the first layer and the input embedding.
        layer, embedding: all-gathered parameters of one layer; of the embedding.
        copies: buffers for all-gathered parameters; torch keeps an all-gather's output until the next one.
        layer_gradients, embedding_gradients: gradients of these, in the compute dtype.
        reducing: the largest group of gradients during its reduction.
        step: temporaries of the optimizer.
        idle, idle_optimizer: resident while the engine is idle.
        host: memory on the host, for each GPU.
        loading: peak while reading the checkpoint: this GPU's shard plus the largest unsharded tensor.
    """

    parameters: float = 0
    gradients: float = 0
    optimizer: float = 0
    accumulated: float = 0
    late: float = 0
    layer: float = 0
    embedding: float = 0
    copies: int = 1
    layer_gradients: float = 0
    embedding_gradients: float = 0
    reducing: float = 0
    step: float = 0
    idle: float = 0
    idle_optimizer: float = 0
    host: float = 0
    loading: float = 0


def trained_parameters(shape: ModelShape, engine: Engine) -> int:
    """Count the model's trained parameters: all of them, or those of its adapters."""
    if not engine.lora_rank:
        return shape.parameters
    adapted = [
        ends
        for name, ends in shape.matrices.items()
        if engine.lora_targets == LORA_ALL or name in engine.lora_targets or _megatron_name(name) in engine.lora_targets
    ]
    return shape.layers * engine.lora_rank * sum(a + b for a, b in adapted)


def _megatron_name(matrix: str) -> str:
    """Map a matrix of transformers to Megatron's fused matrix that contains it."""
    if matrix in ("q_proj", "k_proj", "v_proj"):
        return "linear_qkv"
    return {"o_proj": "linear_proj", "down_proj": "linear_fc2"}.get(matrix, "linear_fc1")


def training_memory(shape: ModelShape, engine: Engine, micro_batches: int = 1) -> EngineMemory:
    """Estimate the memory of a trained model."""
    memory = _megatron if engine.backend == "megatron" else _fsdp
    return memory(shape, engine, trained_parameters(shape, engine), micro_batches)


def frozen_memory(shape: ModelShape, engine: Engine) -> EngineMemory:
    """Estimate the memory of a reference policy or a teacher: no gradients, no optimizer."""
    memory = _megatron if engine.backend == "megatron" else _fsdp
    return memory(shape, engine, 0, 1)


def _fsdp(shape: ModelShape, engine: Engine, trained: int, micro_batches: int) -> EngineMemory:
    shard, b = engine.held_bytes / engine.shards, engine.compute_bytes
    layer, embedding = shape.block_parameters, shape.embedding_parameters
    layer_trained, embedding_trained = layer * bool(trained), embedding * bool(trained)
    if engine.lora_rank:
        layer_trained, embedding_trained = trained / shape.layers, 0
    # A streamed layer needs its shard on the GPU beside the gathered copy.
    gathered = b + (shard if engine.streamed and engine.accelerator else 0)
    adapters = trained if engine.lora_rank else 0
    parameters, optimizer = (shape.parameters + adapters) * shard, 2 * trained * shard
    memory = EngineMemory(
        parameters=parameters,
        gradients=trained * shard,
        optimizer=optimizer,
        accumulated=trained * _FP32 if engine.deferred and micro_batches > 1 else 0,
        late=(layer_trained + embedding_trained) * shard,
        layer=layer * gathered,
        embedding=embedding * gathered,
        copies=2 if engine.shards > 1 else 1,
        layer_gradients=layer_trained * b,
        embedding_gradients=embedding_trained * b,
        reducing=max(layer_trained, embedding_trained) * (b + _FP32),
        # On a CPU torch updates parameters one at a time.
        step=trained * shard if engine.accelerator else 0,
        idle=0 if engine.param_offload else parameters,
        idle_optimizer=0 if engine.optimizer_offload else optimizer,
        host=parameters * engine.param_offload + optimizer * engine.optimizer_offload,
        loading=parameters + embedding * engine.held_bytes,
    )
    if not engine.streamed:
        return memory
    gone = dict.fromkeys(("parameters", "gradients", "late", "optimizer", "step", "idle", "idle_optimizer"), 0.0)
    return replace(memory, **gone, host=parameters + optimizer)


def _megatron(shape: ModelShape, engine: Engine, trained: int, micro_batches: int) -> EngineMemory:
    local = (shape.layers * shape.block_parameters / engine.pipeline + shape.embedding_parameters) / engine.tensor
    if engine.pipeline == 1 and not shape.tied:
        local += shape.embedding_parameters / engine.tensor
    mine = local * (trained / shape.parameters if engine.lora_rank else bool(trained))
    ranks = engine.data_parallel * engine.context if engine.distributed_optimizer else 1
    parameters, optimizer = 2 * local, 3 * _FP32 * mine / ranks
    gradients = _FP32 * mine
    return EngineMemory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        step=_FP32 * mine / ranks,
        idle=0 if engine.param_offload else parameters + gradients,
        idle_optimizer=0 if engine.optimizer_offload else optimizer,
        host=(parameters if engine.param_offload else 0) + (optimizer if engine.optimizer_offload else 0),
    )
