"""Sizes of a stage: what decides its layouts, memory and cost; `from_verl` reads them from a composed configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LORA_ALL = "all-linear"


@dataclass(frozen=True)
class Engine:
    """One model in one of verl's training engines.

    Attributes:
        section: where its keys stand, for messages.
        world: GPUs.
        tensor, pipeline, context, ulysses: parallel sizes; 1 where the engine has none of the kind.
        shards: GPUs among which FSDP divides parameters.
        held_bytes, compute_bytes: of a parameter as it is kept, and as it is multiplied with.
        streamed: parameters stay on the host and come layer by layer (FSDP2's CPUOffloadPolicy).
        checkpointing: None, or how many layers are recomputed from one saved input.
        lora_rank: of adapters, 0 without; the base is then frozen.
        deferred: gradients of micro-batches are kept whole until the last one (FSDP's no_sync).
        accelerator: it runs on one; on a CPU nothing is staged, and verl's kernels are others.
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
        """GPUs that work on the same sequences."""
        return self.tensor * self.pipeline * self.context * self.ulysses

    @property
    def data_parallel(self) -> int:
        return max(1, self.world // self.model_parallel)

    @property
    def sequence_shards(self) -> int:
        """Among how many GPUs a sequence's tokens are divided."""
        return self.context * self.ulysses


@dataclass(frozen=True)
class MicroBatch:
    """Tokens that a pass holds. `key` is the setting that decides them."""

    sequences: int | None
    tokens: int | None
    key: str

    def tokens_per_gpu(self, longest: int, engine: Engine) -> int:
        """At most, with sequences of `longest` tokens. verl's token budget is per GPU, and never below a sequence."""
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
        longest: tokens of a sequence at most, prompt and response.
        batch: sequences of a step; of a mini-batch, that is of an update: `mini_batch`.
        scoring: of log-probabilities by the actor, None where nobody asks for them.
        reference: the engine of the reference policy or the teacher, None without.
        loss: `policy` (log-probabilities of the tokens), `divergence` (chunked) or `logits` (both logits whole).
        entropy: whether the update's loss needs the entropy of every token.
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
