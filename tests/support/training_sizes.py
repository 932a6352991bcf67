"""Settings of one training stage, for estimates."""

from __future__ import annotations

from dataclasses import replace

from verl_s2d.verl_settings.stage_sizes import Engine, MicroBatch, Rollout, Training

FSDP = Engine("actor.fsdp_config", "fsdp", world=16, shards=16)


MEGATRON = Engine("actor.megatron", "megatron", world=16, tensor=4, pipeline=2)


ROLLOUT = Rollout("rollout", 16, 2, 1, 0.6, 2, 8192, 256, True, 0)


MICRO = MicroBatch(1, None, "actor.ppo_micro_batch_size_per_gpu")


def training(engine=FSDP, **changes) -> Training:
    whole = Training(
        actor=engine,
        batch=1024,
        mini_batch=64,
        longest=18_432,
        update=MICRO,
        loss="policy",
        chunk_tokens=1024,
        fused=False,
        compiled=True,
        entropy=False,
        epochs=1,
        scoring=MICRO,
        rollout=ROLLOUT,
    )
    return replace(whole, **changes)
