"""Stage 2a from what its cache stored of the teacher: rollouts and warmup as plain commands, no teacher's engine."""

from __future__ import annotations

import json
import sys

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_training import plain_log_probs
from tests.support.top_k_reference import definition
from verl_s2d.logs import last_lines
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, overlay

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

K = 6


def test_a_warmup_learns_from_the_tokens_that_the_rollouts_stored(verl, teacher, student, prompts, tmp_path):
    """Sampled at another temperature than 1, which the stored log-probs do not have."""
    cache, out = tmp_path / "cache", tmp_path / "warmup"
    sample = {"model": teacher, "data": prompts, "out": cache, "max_tokens": 8, "n": 4, "temperature": 0.8}
    arguments = [f"{name}={value}" for name, value in (sample | {"log_probs": K, "device": "cpu"}).items()]
    command = [sys.executable, "-m", "verl_s2d.stages.rollouts.rollout_cache", *arguments]
    assert verl.execute(command, cache) == 0, "\n".join(last_lines(cache / "log.txt", 40))
    keys = {
        "model.path": str(student),
        "data.train_files": str(cache / "rollouts.parquet"),
        "data.train_batch_size": 128,
        "optim.lr": 1e-3,
        "+s2d.signal.type": "top_k",
        "+s2d.signal.k": K,
        "trainer.total_training_steps": 8,
        "trainer.default_local_dir": str(out / "checkpoints"),
        "trainer.logger": ["console", "file"],
        "hydra.run.dir": str(out / "hydra"),
    }
    overrides = hydra_arguments(merge(overlay("warmup"), overlay("cpu", "warmup"), keys))
    command = [sys.executable, "-m", "verl_s2d.stages.warmup.trainer", *overrides]
    code = verl.execute(command, out, {"VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl")})
    assert code == 0, "\n".join(last_lines(out / "log.txt", 40))
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    metrics = {line["step"]: line["data"] for line in lines}

    of_teacher, of_student = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in (teacher, student))
    values = []
    for row in pq.read_table(cache / "rollouts.parquet").to_pylist():
        prompt, response = torch.tensor(row["prompt_ids"]), torch.tensor(row["response_ids"])
        best = plain_log_probs(of_teacher, prompt, response).topk(K)
        torch.testing.assert_close(torch.tensor(row["top_log_probs"]), best.values, atol=1e-3, rtol=0)
        values.append(definition(plain_log_probs(of_student, prompt, response), best.indices, best.values, "bucket"))
    # A batch is the whole cache.
    assert metrics[1]["train/forward_kl"] == pytest.approx(torch.cat(values).mean().item(), rel=1e-3)
    kl = [data["train/forward_kl"] for _, data in sorted(metrics.items())]
    assert len(kl) == 8 and kl[-1] < 0.7 * kl[0], kl
    assert all(data["train/teacher_scored_tokens"] == len(torch.cat(values)) for data in metrics.values())
    assert (out / "checkpoints" / "global_step_8" / "huggingface" / "config.json").exists()
