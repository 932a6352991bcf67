"""Compose the configuration of a warmup."""

from __future__ import annotations

from hydra import compose, initialize_config_module


def configuration(models, *overrides):
    base = [f"model.path={models}/student", f"s2d.teacher.path={models}/student", "data.train_batch_size=4"]
    base.append("data.use_dynamic_bsz=false")
    with initialize_config_module("verl_s2d.stages.warmup", version_base=None):
        return compose("s2d_warmup", [*base, "+model.override_config.attn_implementation=sdpa", *overrides])
