"""Stage 2b with the teacher on a vLLM server of its own, in real verl: what a colocated teacher answers, it answers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.batch_dump import BATCH, dumping
from tests.support.tiny_training import plain_log_probs
from tests.support.top_k_reference import definition

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


@pytest.mark.slow
def test_the_top_k_of_a_served_teacher_is_the_loss_and_it_falls(verl, teacher, student, prompts, tmp_path):
    k = 6
    signal = {"+s2d.signal.type": "top_k", "+s2d.signal.k": k, "+s2d.signal.objective": "reverse_kl"}
    metrics = verl.run(
        "opd",
        student=student,
        data=prompts,
        out=tmp_path,
        steps=8,
        overrides=BATCH | {"+s2d.teacher.path": str(teacher)} | SERVED | signal | dumping(tmp_path / "batch.pt"),
    )
    rows, values = torch.load(tmp_path / "batch.pt"), []
    of_teacher, of_student = (AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in (teacher, student))
    for prompt, response, ids, log_probs in zip(
        *(rows[name] for name in ("prompts", "responses", "teacher_ids", "teacher_logprobs")), strict=True
    ):
        assert ids.shape == log_probs.shape == (len(prompt) + len(response), k)
        predicts = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        expected = plain_log_probs(of_teacher, prompt, response)
        torch.testing.assert_close(log_probs[predicts], expected.topk(k).values, atol=1e-3, rtol=0)
        torch.testing.assert_close(expected.gather(1, ids[predicts].long()), log_probs[predicts], atol=1e-3, rtol=0)
        of_student_now = plain_log_probs(of_student, prompt, response)
        values.append(definition(of_student_now, ids[predicts], log_probs[predicts], "bucket", "reverse_kl"))
    assert metrics[1]["s2d/reverse_kl"] == pytest.approx(torch.cat(values).mean().item(), rel=1e-3)
    kl = [data["s2d/reverse_kl"] for _, data in sorted(metrics.items())]
    assert kl[0] > 0.05 and sum(kl[-3:]) < 0.8 * sum(kl[:3]), kl
    for data in metrics.values():
        assert 0 < data["s2d/student_mass_on_teacher_top"] <= 1 and 0 < data["s2d/teacher_mass_on_own_top"] <= 1
        assert data["s2d/teacher_scored_tokens"] == data["s2d/sampled_tokens"] > 0
