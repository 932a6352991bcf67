"""Name the key to change when a phase does not fit."""

from __future__ import annotations

from verl_s2d.sizing.generation import Generation
from verl_s2d.sizing.phases import Phase
from verl_s2d.verl_settings.stage_sizes import Rollout, Training


def remedy_for(phase: Phase, training: Training) -> str:
    """Name the key that reduces a phase's largest reducible term."""
    engine, rollout = training.actor, training.rollout
    batch = {"log-probs": training.scoring, "reference": training.reference_scoring}.get(phase.name) or training.update
    smaller_batch = f"lower {batch.key}" if (batch.sequences or 2) > 1 else f"divide sequences: {_divide(training)}"
    if phase.name == "loading":
        if phase.terms.get("parameters", 0) > phase.terms["teacher"] / 2:
            return f"set {engine.section}.param_offload: true"
        return f"set {training.reference.section}.model_dtype: bf16, or raise cluster.gpus_per_node"
    if phase.name == "rollout":
        away = {
            "parameters": (engine.param_offload, "param_offload"),
            "optimizer": (engine.optimizer_offload, "optimizer_offload"),
        }
        for term, (done, key) in sorted(away.items(), key=lambda item: -phase.terms.get(item[0], 0)):
            if not done and phase.terms.get(term, 0) > 0:
                return f"set {engine.section}.{key}: true, or lower {rollout.section}.gpu_memory_utilization"
        return f"lower {rollout.section}.gpu_memory_utilization"
    if "rollout engine" in phase.terms and not rollout.sleeps:
        return f"set {rollout.section}.free_cache_engine: true"
    choices = {
        "activations": smaller_batch,
        "logits and loss": smaller_batch,
        "teacher": smaller_batch,
        "parameters": _spread(training),
        "gradients": _spread(training),
        "optimizer": _spread(training),
        "temporaries": _spread(training),
        "gathered layers": _spread(training),
    }
    if engine.checkpointing is None:
        choices["activations"] = (
            "set enable_gradient_checkpointing: true of the model"
            if engine.backend == "fsdp"
            else f"set {engine.section}.override_transformer_config.recompute_granularity: full"
        )
    if engine.deferred and phase.terms.get("gradients", 0) > phase.total / 3:
        return f"set {engine.section}.use_no_sync_for_gradient_accumulation: false"
    if phase.name == "log-probs" and not engine.param_offload and not engine.optimizer_offload:
        choices["optimizer"] = f"set {engine.section}.optimizer_offload: true"
    largest = max((term for term in phase.terms if term in choices), key=lambda term: phase.terms[term])
    return choices[largest]


def _divide(training: Training) -> str:
    if training.actor.backend == "megatron":
        return f"raise {training.actor.section}.context_parallel_size"
    if training.loss == "policy" and not training.fused:
        return "set actor_rollout_ref.model.use_fused_kernels: true, or shorten data.response_tokens"
    return f"raise {training.actor.section}.ulysses_sequence_parallel_size, or shorten data.response_tokens"


def _spread(training: Training) -> str:
    engine = training.actor
    if engine.backend == "megatron":
        return f"raise {engine.section}.tensor_model_parallel_size or pipeline_model_parallel_size, or cluster.nodes"
    return "raise cluster.nodes or cluster.gpus_per_node, or train adapters (lora_rank of the model)"


def cache_remedy(generation: Generation, rollout: Rollout) -> str:
    """Name the key to change when vLLM's cache is smaller than one full-length sequence."""
    if generation.weights > generation.share / 2:
        return f"raise {rollout.section}.tensor_model_parallel_size"
    return f"raise {rollout.section}.gpu_memory_utilization, or shorten data.response_tokens"
