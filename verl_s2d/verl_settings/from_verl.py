"""Read the sizes of a stage from its composed verl configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.objectives import chunk_sizes
from verl_s2d.verl_settings.stage_sizes import LORA_ALL, Engine, MicroBatch, Rollout, Training

Settings = Mapping[str, Any]
_BYTES = {"fp32": 4, "float32": 4, "fp16": 2, "float16": 2, "bf16": 2, "bfloat16": 2}


def read_rl(settings: Settings, longest: int, *, teacher: bool = False, exact: bool = False) -> Training:
    """Read the configuration of verl's RL trainer, resolved.

    Args:
        longest: maximal tokens of a sequence, prompt and response.
        teacher: a frozen teacher replaces the reference policy.
        exact: an exact divergence replaces the policy loss.
    """
    root, data, world = settings["actor_rollout_ref"], settings["data"], _world(settings)
    actor, model, rollout = root["actor"], root["model"], root["rollout"]
    prefix = "actor_rollout_ref"
    on = {"world": world, "accelerator": settings["trainer"]["device"] != "cpu"}
    update = _micro_batch(actor, f"{prefix}.actor", "ppo_micro_batch_size_per_gpu", "ppo_max_token_len_per_gpu")
    log_prob = ("log_prob_micro_batch_size_per_gpu", "log_prob_max_token_len_per_gpu", "log_prob_use_dynamic_bsz")
    engine = _engine(actor, actor["strategy"], f"{prefix}.actor", model, section_of_engine=True, **on)
    asks_reference = actor["use_kl_loss"] or settings["algorithm"]["use_kl_in_reward"]
    # verl's reference policy is the student without its adapters; a teacher is a separate model.
    reference = None
    if teacher or (asks_reference and not engine.lora_rank):
        reference = _engine(
            root["ref"], actor["strategy"], f"{prefix}.ref", model, section_of_engine=True, frozen=True, **on
        )
    correction = settings["algorithm"].get("rollout_correction") or {}
    loss = "policy"
    if exact:
        whole = settings["s2d"].get("materialise_logits") or engine.backend == "megatron"
        loss = "logits" if whole else "divergence"
    sections = actor.get("fsdp_config") or actor.get("megatron") or {}
    return Training(
        actor=engine,
        batch=data["train_batch_size"] * rollout["n"],
        mini_batch=actor["ppo_mini_batch_size"] * rollout["n"],
        longest=longest,
        update=update,
        loss=loss,
        chunk_tokens=_chunk(settings),
        fused=bool(model["use_fused_kernels"]),
        compiled=bool(sections.get("use_torch_compile")),
        entropy=bool(actor["entropy_coeff"] or actor.get("calculate_entropy")),
        epochs=actor["ppo_epochs"],
        scoring=None
        if exact or correction.get("bypass_mode")
        else _micro_batch(rollout, f"{prefix}.rollout", *log_prob),
        reference=reference,
        reference_scoring=None
        if exact or not (asks_reference or teacher)
        else _micro_batch(root["ref"], f"{prefix}.ref", *log_prob),
        rollout=_rollout(rollout, f"{prefix}.rollout", world),
    )


def read_warmup(settings: Settings, longest: int, *, teacher: bool = True) -> Training:
    """Read the configuration of stage 2a's trainer, resolved.

    Args:
        longest: tokens of a sequence at most, prompt and response.
        teacher: there are frozen models; False where the cache holds their answers.
    """
    data, engine, world = settings["data"], settings["engine"], _world(settings)
    on = {"world": world, "accelerator": settings["trainer"]["device"] != "cpu"}
    # Megatron's section does not name it.
    strategy = engine.get("strategy") or "megatron"
    student = _engine(engine, strategy, "engine", settings["model"], **on)
    whole = settings["s2d"].get("materialise_logits") or student.backend == "megatron"
    return Training(
        actor=student,
        batch=data["train_batch_size"],
        mini_batch=data["train_batch_size"],
        longest=longest,
        update=_micro_batch(data, "data", "micro_batch_size_per_gpu", "max_token_len_per_gpu"),
        loss="logits" if whole else "divergence",
        chunk_tokens=_chunk(settings),
        fused=False,
        compiled=False,
        entropy=False,
        epochs=1,
        reference=_engine(engine, strategy, "engine", settings["model"], frozen=True, **on) if teacher else None,
    )


def _world(settings: Settings) -> int:
    return settings["trainer"]["nnodes"] * settings["trainer"]["n_gpus_per_node"]


def _engine(
    section: Settings,
    strategy: str,
    key: str,
    model: Settings,
    *,
    world: int,
    accelerator: bool,
    section_of_engine: bool = False,
    frozen: bool = False,
) -> Engine:
    """Read an engine from the section that configures it; `section_of_engine`: the engine is one level deeper."""
    lora = model.get("lora") or {}
    rank = 0 if frozen else max(lora.get("rank") or 0, model.get("lora_rank") or 0)
    if strategy == "megatron":
        name = f"{key}.megatron" if section_of_engine else key
        own = section["megatron"] if section_of_engine else section
        return _megatron(own, name, world, rank)
    name = f"{key}.fsdp_config" if section_of_engine else key
    own = section["fsdp_config"] if section_of_engine else section
    mixed = own.get("mixed_precision") or {}
    size = own.get("fsdp_size") or -1
    return Engine(
        section=name,
        backend="fsdp",
        world=world,
        ulysses=_ulysses(section, own),
        shards=size if 0 < size < world else world,
        held_bytes=_BYTES.get(own.get("model_dtype") or ("bf16" if frozen else "fp32"), 4),
        compute_bytes=_BYTES.get(mixed.get("param_dtype") or "bf16", 2),
        param_offload=bool(own["param_offload"]),
        optimizer_offload=bool(own["optimizer_offload"]),
        # verl streams every frozen model, whatever its param_offload says.
        streamed=frozen or bool(own.get("offload_policy")),
        checkpointing=1 if model.get("enable_gradient_checkpointing") else None,
        lora_rank=rank,
        lora_targets=_targets(model.get("target_modules")),
        deferred=bool(own.get("use_no_sync_for_gradient_accumulation")),
        accelerator=accelerator,
    )


def _ulysses(section: Settings, own: Settings) -> int:
    """Read the Ulysses size; verl's deprecated key beside fsdp_config wins where it is more than 1."""
    deprecated = section.get("ulysses_sequence_parallel_size") or 1
    return deprecated if deprecated > 1 else own.get("ulysses_sequence_parallel_size") or 1


def _megatron(own: Settings, name: str, world: int, rank: int) -> Engine:
    overrides = own.get("override_transformer_config") or {}
    full = overrides.get("recompute_granularity") == "full"
    return Engine(
        section=name,
        backend="megatron",
        world=world,
        tensor=own.get("tensor_model_parallel_size") or 1,
        pipeline=own.get("pipeline_model_parallel_size") or 1,
        context=own.get("context_parallel_size") or 1,
        held_bytes=2,
        param_offload=bool(own["param_offload"]),
        optimizer_offload=bool(own["optimizer_offload"]),
        sequence_parallel=bool(own.get("sequence_parallel")),
        distributed_optimizer=bool(own.get("use_distributed_optimizer")),
        checkpointing=(overrides.get("recompute_num_layers") or 1) if full else None,
        lora_rank=rank,
    )


def _targets(value: Any) -> tuple[str, ...] | str:
    return tuple(value) if isinstance(value, list) else value or LORA_ALL


def _micro_batch(
    section: Settings, prefix: str, sequences: str, tokens: str, dynamic: str = "use_dynamic_bsz"
) -> MicroBatch:
    if section.get(dynamic):
        return MicroBatch(None, section[tokens], f"{prefix}.{tokens}")
    return MicroBatch(section.get(sequences) or 1, None, f"{prefix}.{sequences}")


def _rollout(section: Settings, prefix: str, world: int) -> Rollout:
    return Rollout(
        section=prefix,
        world=world,
        tensor=section["tensor_model_parallel_size"],
        pipeline=section.get("pipeline_model_parallel_size") or 1,
        utilization=section["gpu_memory_utilization"],
        dtype_bytes=_BYTES.get(section["dtype"], 2),
        batched_tokens=section["max_num_batched_tokens"],
        sequences=section["max_num_seqs"],
        sleeps=bool(section["free_cache_engine"]),
        bucket_bytes=section["checkpoint_engine"]["update_weights_bucket_megabytes"] << 20,
    )


def _chunk(settings: Settings) -> int:
    """Return the number of tokens whose logits exist at a time in an exact divergence."""
    default = chunk_sizes.ON_CPU if settings["trainer"]["device"] == "cpu" else chunk_sizes.ON_ACCELERATOR
    return settings.get("s2d", {}).get("chunk_tokens") or default
