"""Stage 2b with the teacher on a vLLM server of its own, in real verl: what a colocated teacher answers, it answers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.batch_dump import BATCH, dumping
from tests.support.tiny_training import plain_log_probs

pytestmark = pytest.mark.e2e

SERVED = {"+s2d.teacher.placement": "server", "+s2d.teacher.server.max_num_batched_tokens": 512}


@pytest.mark.slow
def test_the_log_probs_of_a_served_teacher_are_those_of_plain_transformers(verl, teacher, student, prompts, tmp_path):
    metrics = verl.run(
        "opd",
        student=student,
        data=prompts,
        out=tmp_path,
        steps=6,
        overrides=BATCH | {"+s2d.teacher.path": str(teacher)} | SERVED | dumping(tmp_path / "batch.pt"),
    )
    rows, tokens = torch.load(tmp_path / "batch.pt"), 0
    network = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    for prompt, response, found in zip(rows["prompts"], rows["responses"], rows["ref_log_prob"], strict=True):
        expected = plain_log_probs(network, prompt, response).gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=0)
        tokens += len(response)
    assert tokens == metrics[1]["s2d/sampled_tokens"] == metrics[1]["s2d/teacher_scored_tokens"]
    kl = [data["s2d/reverse_kl"] for _, data in sorted(metrics.items())]
    assert kl[0] > 0.1 and sum(kl[-2:]) < sum(kl[:2]), kl
