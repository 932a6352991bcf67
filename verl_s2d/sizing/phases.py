"""Estimate the memory of each phase of a step on one GPU, in bytes, and find the peak.

verl's colocated trainer runs its phases in sequence. Models are loaded; FSDP2 first moves even streamed models to the
GPU. vLLM samples while the trainer's engines are idle, offloaded or not. vLLM sleeps, keeping its context and CUDA
graphs, while log-probabilities are computed and the actor is updated; then it receives the new weights. An update's
peak is the largest of its moments: the teacher's pass if any, the loss, the first and the last layer's backward, the
reduction of the largest gradients, the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from verl_s2d.sizing.activations import activations, forward_working
from verl_s2d.sizing.engine_memory import EngineMemory, frozen_memory, training_memory
from verl_s2d.sizing.generation import GRAPH_BYTES, Generation
from verl_s2d.sizing.loss_memory import scoring_peak, update_peak
from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Engine, MicroBatch, Training

PROCESS_BYTES = 2 << 30
"""An assumption: a trainer process's CUDA context, NCCL buffers and fragmentation."""


@dataclass(frozen=True)
class Phase:
    """The peak of one phase: bytes by purpose."""

    name: str
    terms: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.terms.values())


def training_phases(
    training: Training,
    shape: ModelShape,
    teacher: ModelShape | None,
    generation: Generation | None,
    *,
    process_bytes: float = PROCESS_BYTES,
) -> list[Phase]:
    """Estimate the phases of a stage that trains a model of this shape.

    Args:
        teacher: shape of the reference engine's model; None: the trained model's.
        generation: vLLM's memory; None for a stage that does not sample.
    """
    micro_batches = _micro_batches(training)
    actor = training_memory(shape, training.actor, micro_batches)
    frozen = EngineMemory() if training.reference is None else frozen_memory(teacher or shape, training.reference)
    always = {"parameters": frozen.idle, "process": process_bytes}
    beside = {}
    if generation is not None:
        beside["rollout engine"] = GRAPH_BYTES if training.rollout.sleeps else generation.share
    idle = {"parameters": actor.idle, "optimizer": actor.idle_optimizer}
    phases = []
    if frozen.loading > 0:
        # verl builds the reference first; in a warmup the student is already loaded.
        there = {} if generation is not None else idle
        phases.append(Phase("loading", _sum(there, {"process": process_bytes, "teacher": frozen.loading})))
    if generation is not None:
        phases.append(Phase("rollout", _sum(always, idle, {"rollout engine": generation.share})))
    loaded = {"parameters": actor.parameters, "optimizer": actor.idle_optimizer}
    if training.scoring is not None:
        pass_terms = _scoring(training, training.actor, actor, shape, training.scoring, entropy=True)
        phases.append(Phase("log-probs", _sum(always, beside, loaded, pass_terms)))
    if training.reference_scoring is not None:
        engine = training.reference or training.actor
        model = shape if training.reference is None else teacher or shape
        memory = actor if training.reference is None else frozen
        pass_terms = _scoring(training, engine, memory, model, training.reference_scoring, entropy=False)
        held = loaded if training.reference is None else _sum(idle, {"teacher": frozen.parameters - frozen.idle})
        phases.append(Phase("reference", _sum(always, beside, held, pass_terms)))
    moments = update_moments(training, shape, teacher, actor, frozen, micro_batches)
    updates = (Phase("update", _sum(always, beside, terms)) for terms in moments.values())
    phases.append(max(updates, key=lambda phase: phase.total))
    if generation is not None:
        # The share of an engine that does not sleep already includes its weights.
        received = generation.weights + GRAPH_BYTES if training.rollout.sleeps else generation.share
        bucket = {"rollout engine": received + training.rollout.bucket_bytes}
        gathered = {"gathered layers": shape.embedding_parameters * 2.0}
        phases.append(Phase("weight sync", _sum(always, loaded, bucket, gathered)))
    return [_named(phase) for phase in phases]


def update_moments(
    training: Training,
    shape: ModelShape,
    teacher: ModelShape | None,
    actor: EngineMemory,
    frozen: EngineMemory,
    micro_batches: int,
) -> dict[str, dict[str, float]]:
    """Estimate the moments of an update's last micro-batch: name -> bytes by purpose."""
    engine, tokens = training.actor, training.update.tokens_per_gpu(training.longest, training.actor)
    kept = activations(shape, engine, tokens, micro_batches)
    held = {"parameters": actor.parameters, "optimizer": actor.optimizer}
    # Megatron's gradient buffer is allocated permanently.
    earlier = actor.gradients if micro_batches > 1 or engine.backend == "megatron" else 0
    before = held | {"gradients": actor.accumulated or earlier}
    head = {"gathered layers": actor.embedding * actor.copies}
    one_layer = {"activations": kept.recomputed + kept.working}
    layer = {"gathered layers": actor.layer * actor.copies + actor.layer_gradients}
    # FSDP2 keeps a tied embedding and its gradient unsharded until the backward pass ends.
    root = {"gathered layers": actor.embedding + actor.embedding_gradients if shape.tied else 0}
    moments = {
        "loss": _sum(
            before,
            head,
            {
                "activations": kept.kept,
                "logits and loss": update_peak(training, shape, teacher, tokens),
                "gathered layers": actor.embedding_gradients,
            },
        ),
        "first backward": _sum(
            before, root, layer, one_layer, {"activations": kept.kept, "gathered layers": actor.layer}
        ),
        "last backward": _sum(
            held,
            root,
            layer,
            one_layer,
            {
                "gradients": actor.gradients - actor.late,
                "activations": 0 if kept.recomputed else kept.kept / shape.layers,
                "gathered layers": 0 if shape.tied else actor.embedding,
            },
        ),
        "reduction": _sum(held, {"gradients": actor.gradients, "gathered layers": actor.reducing}),
        "step": _sum(held, {"gradients": actor.gradients, "temporaries": actor.step}),
    }
    if training.loss != "policy" and training.reference is not None:
        # The teacher's pass runs within the student's, when all of the student's activations exist.
        resident = frozen.parameters - frozen.idle
        working = frozen.layer * (1 + frozen.copies) + forward_working(teacher or shape, training.reference, tokens)
        moments["teacher"] = _sum(before, head, {"activations": kept.kept, "teacher": resident + working})
        # Both heads are gathered at the same time, unless both models' logits are kept for the backward pass.
        embedding = frozen.embedding * frozen.copies if training.loss == "divergence" else 0
        moments["loss"] = _sum(moments["loss"], {"teacher": resident + embedding})
    return moments


def _scoring(
    training: Training, engine: Engine, memory: EngineMemory, shape: ModelShape, batch: MicroBatch, *, entropy: bool
) -> dict[str, float]:
    tokens = batch.tokens_per_gpu(training.longest, engine)
    return {
        "gathered layers": max(memory.layer * (1 + memory.copies), memory.embedding * memory.copies),
        "activations": forward_working(shape, engine, tokens),
        "logits and loss": scoring_peak(training, shape, tokens, entropy=entropy),
    }


def _micro_batches(training: Training) -> int:
    """Count the micro-batches of a mini-batch on one data-parallel rank."""
    per_rank = max(1, training.mini_batch // training.actor.data_parallel)
    return -(-per_rank // training.update.sequences_at_most(training.longest, training.actor))


def _sum(*parts: dict[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, size in part.items():
            total[name] = total.get(name, 0) + size
    return total


def _named(phase: Phase) -> Phase:
    """Drop terms of zero bytes."""
    return Phase(phase.name, {name: size for name, size in phase.terms.items() if size})


def fullest(phases: Iterable[Phase]) -> Phase:
    """Return the phase with the highest total."""
    return max(phases, key=lambda phase: phase.total)
