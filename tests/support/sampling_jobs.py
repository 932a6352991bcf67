"""Tiny jobs of the stages that sample: arguments, and the bytes that they leave."""

from __future__ import annotations

from tests.support import tiny
from verl_s2d.stages.evaluate import sample_and_score
from verl_s2d.stages.rollouts import rollout_cache

FILES = {"rollouts": ("rollouts.parquet", "rollouts.json"), "evaluation": ("generations.parquet", "result.json")}


def job(what, model, data, out, **changes):
    if what == "rollouts":
        chosen = {"model": str(model), "data": str(data), "out": str(out), "n": 3, "max_tokens": 6, **changes}
        return rollout_cache.main, rollout_cache.Options(**chosen)
    verifier = f"{tiny.__file__}:score_sum"
    chosen = {
        "model": str(model),
        "out": str(out),
        "samples": 3,
        "max_tokens": 6,
        "set": {"sums": str(data)},
        **changes,
    }
    return sample_and_score.main, sample_and_score.Options(verifier=verifier, **chosen)


def result(what, out):
    return [(out / name).read_bytes() for name in FILES[what]]
