"""Define the sizes that determine a stage's layouts, memory and cost; `from_verl` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LORA_ALL = "all-linear"


@dataclass(frozen=True)
class Engine:
    """A model in one of verl's training engines.

    Attributes:
        section: dotted key of the engine's section, for messages.
        world: number of GPUs.
        tensor, pipeline, context, ulysses: parallel sizes; 1 where the engine has none of the kind.
        shards: number of GPUs that FSDP shards parameters over.
        held_bytes, compute_bytes: bytes of a parameter in storage and in matrix products.
        streamed: parameters stay on the host and are copied layer by layer (FSDP2's CPUOffloadPolicy).
        checkpointing: number of layers recomputed from one saved input; None without activation checkpointing.
        lora_rank: rank of the adapters; 0: none. With adapters the base is frozen.
        deferred: gradients stay unsharded until the last micro-batch (FSDP's no_sync).
        accelerator: the engine runs on an accelerator; on a CPU nothing is staged, and verl uses other kernels.
    """

    section: str
    backend: Literal["fsdp", "megatron"]
    world: int
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    ulysses: int = 1
    shards: int = 1
    held_bytes: int = 4
    compute_bytes: int = 2
    param_offload: bool = False
    optimizer_offload: bool = False
    streamed: bool = False
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    checkpointing: int | None = None
    lora_rank: int = 0
    lora_targets: tuple[str, ...] | str = LORA_ALL
    deferred: bool = False
    accelerator: bool = True

    @property
    def model_parallel(self) -> int:
        """Count the GPUs that work on the same sequences."""
        return self.tensor * self.pipeline * self.context * self.ulysses

    @property
    def data_parallel(self) -> int:
        return max(1, self.world // self.model_parallel)

    @property
    def sequence_shards(self) -> int:
        """Count the GPUs that a sequence's tokens are divided over."""
        return self.context * self.ulysses


@dataclass(frozen=True)
class MicroBatch:
    """Sequences or tokens in a micro-batch, and `key`, the setting that determines their number."""

    sequences: int | None
    tokens: int | None
    key: str

    def tokens_per_gpu(self, longest: int, engine: Engine) -> int:
        """Bound the tokens per GPU, given sequences of `longest` tokens; verl's budget holds at least one sequence."""
        share = -(-longest // engine.sequence_shards)
        return self.sequences * share if self.tokens is None else max(self.tokens, share)

    def sequences_at_most(self, longest: int, engine: Engine) -> int:
        return self.sequences or max(1, self.tokens * engine.sequence_shards // longest)


@dataclass(frozen=True)
class Rollout:
    """vLLM beside, or instead of, a training engine."""

    section: str
    world: int
    tensor: int
    pipeline: int
    utilization: float
    dtype_bytes: int
    batched_tokens: int
    sequences: int
    sleeps: bool
    bucket_bytes: int


@dataclass(frozen=True)
class Training:
    """A stage that trains.

    Attributes:
        longest: maximal tokens of a sequence, prompt and response.
        batch, mini_batch: sequences per step, and per update.
        scoring: micro-batch of the actor's log-prob pass; None without that pass.
        reference: engine of the reference policy or the teacher; None without one.
        loss: `policy` (log-probabilities of the tokens), `divergence` (chunked) or `logits` (both models' full logits).
        entropy: the update's loss needs the entropy of every token.
    """

    actor: Engine
    batch: int
    mini_batch: int
    longest: int
    update: MicroBatch
    loss: Literal["policy", "divergence", "logits"]
    chunk_tokens: int
    fused: bool
    compiled: bool
    entropy: bool
    epochs: int
    scoring: MicroBatch | None = None
    reference: Engine | None = None
    reference_scoring: MicroBatch | None = None
    rollout: Rollout | None = None
