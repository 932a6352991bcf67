"""Stage 2b in real verl with real vLLM, as a plain verl command."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.batch_dump import BATCH, dumping
from tests.support.tiny_training import plain_log_probs

pytestmark = pytest.mark.e2e

FORBIDDEN_VERIFIER = """
from pathlib import Path
def compute_score(*args, **kwargs):
    Path(__file__).with_name("verifier-was-called").touch()
    return 1.0
"""


@pytest.fixture(scope="module")
def trained(verl, teacher, student, prompts, tmp_path_factory):
    """(directory, metrics) of one run of 15 steps with beta 0.5 that saves its first batch."""
    out = tmp_path_factory.mktemp("trained")
    metrics = verl.run(
        "opd",
        student=student,
        data=prompts,
        out=out,
        steps=15,
        overrides=BATCH
        | {
            "+s2d.teacher.path": str(teacher),
            "+s2d.signal.beta": 0.5,
        }
        | dumping(out / "batch.pt"),
    )
    return out, metrics


def test_a_teacher_equal_to_the_student_teaches_nothing_and_no_verifier_runs(verl, teacher, prompts, tmp_path):
    verifier = tmp_path / "verifier.py"
    verifier.write_text(FORBIDDEN_VERIFIER)
    metrics = verl.run(
        "opd",
        student=teacher,
        data=prompts,
        out=tmp_path / "run",
        steps=1,
        overrides={
            "+s2d.teacher.path": str(teacher),
            "reward.custom_reward_function.path": str(verifier),
            "reward.custom_reward_function.name": "compute_score",
        },
    )[1]
    assert abs(metrics["critic/advantages/max"]) < 1e-4 and abs(metrics["critic/advantages/min"]) < 1e-4
    assert metrics["s2d/reverse_kl"] == pytest.approx(0, abs=1e-5)
    assert metrics["actor/grad_norm"] < 1e-4
    assert metrics["critic/score/max"] == metrics["critic/score/min"] == 0
    assert not verifier.with_name("verifier-was-called").exists()


@pytest.mark.slow
def test_teacher_and_student_log_probs_are_those_of_plain_transformers(trained, teacher, student):
    rows = torch.load(trained[0] / "batch.pt")
    tokens = 0
    for name, model in (("ref_log_prob", teacher), ("old_log_probs", student)):
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        for prompt, response, found in zip(rows["prompts"], rows["responses"], rows[name], strict=True):
            expected = plain_log_probs(network, prompt, response).gather(1, response[:, None])[:, 0]
            torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=0)
            tokens += len(response)
    assert tokens == 2 * trained[1][1]["s2d/sampled_tokens"]
    differences = [(r - o).abs().mean() for r, o in zip(rows["ref_log_prob"], rows["old_log_probs"], strict=True)]
    assert torch.stack(differences).mean() > 0.05, "teacher and student are too alike to tell an alignment error"


@pytest.mark.slow
def test_advantages_are_beta_times_the_log_ratio_on_the_mask_and_zero_elsewhere(trained):
    rows = torch.load(trained[0] / "batch.pt")
    for mask, advantage, returns, teacher, old in zip(
        *(rows[n] for n in ("response_mask", "advantages", "returns", "ref_log_prob", "old_log_probs")), strict=True
    ):
        torch.testing.assert_close(advantage, torch.where(mask.bool(), 0.5 * (teacher - old), 0.0))
        torch.testing.assert_close(advantage, returns)


@pytest.mark.slow
def test_the_sampled_reverse_kl_falls(trained):
    kl = [data["s2d/reverse_kl"] for _, data in sorted(trained[1].items())]
    assert len(kl) == 15
    first, last = sum(kl[:3]) / 3, sum(kl[-3:]) / 3
    assert first > 0.1 and last < 0.6 * first, kl
    for name in ("s2d/reverse_kl_max", "s2d/clipped_tokens", "s2d/student_entropy", "s2d/response_length"):
        assert all(name in data for data in trained[1].values()), name


@pytest.mark.slow
def test_two_ranks_start_from_the_same_divergence_and_train(verl, trained, teacher, student, prompts, tmp_path):
    metrics = verl.run(
        "opd",
        student=student,
        data=prompts,
        out=tmp_path,
        steps=6,
        overrides=BATCH
        | {
            "+s2d.teacher.path": str(teacher),
            "trainer.n_gpus_per_node": 2,
        },
    )
    # The same student, teacher and prompts; the samples are independent.
    assert metrics[1]["s2d/reverse_kl"] == pytest.approx(trained[1][1]["s2d/reverse_kl"], rel=0.4)
    assert metrics[1]["actor/grad_norm"] > 0
    assert metrics[6]["s2d/reverse_kl"] < metrics[1]["s2d/reverse_kl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "more"), [("reverse_kl", {"+s2d.health_top_k": 4}), ("jsd", {"+s2d.signal.keep_tokens": 0.5})]
)
def test_an_exact_divergence_falls_and_starts_where_the_sampled_one_does(
    verl, trained, teacher, student, prompts, tmp_path, objective, more
):
    metrics = verl.run(
        "opd",
        student=student,
        data=prompts,
        out=tmp_path,
        steps=15,
        overrides=BATCH | {"+s2d.teacher.path": str(teacher), "+s2d.signal.type": objective} | more,
    )
    assert metrics[1]["s2d/reverse_kl"] == pytest.approx(trained[1][1]["s2d/reverse_kl"], rel=0.4)
    assert "materialising both models' logits" not in (tmp_path / "log.txt").read_text()
    values = [data[f"s2d/{objective}"] for _, data in sorted(metrics.items())]
    assert len(values) == 15 and min(values) > 0 and sum(values[-3:]) < 0.6 * sum(values[:3]), values
    if objective == "reverse_kl":
        overlap = [data["s2d/overlap_ratio"] for _, data in sorted(metrics.items())]
        assert 0 < overlap[0] < overlap[-1] <= 1
        assert all(0 < data["s2d/teacher_mass_on_student_top"] <= 1 for data in metrics.values())
    for data in metrics.values():
        assert data["s2d/skipped_updates"] == 0 and data["s2d/student_entropy"] > 0
        assert data["s2d/teacher_scored_tokens"] == data["s2d/sampled_tokens"] > 0
        assert data["critic/score/max"] == data["critic/score/min"] == 0


@pytest.mark.slow
def test_a_second_frozen_model_is_asked_about_the_same_tokens(verl, teacher, student, prompts, tmp_path):
    """ExOPD from the student before training: in the first step A = lambda (log pi_T - log pi_old)."""
    overrides = {
        "+s2d.teacher.path": str(teacher),
        "+s2d.models.base.path": str(student),
        "+s2d.signal.type": "exopd",
        "+s2d.signal.lambda": 2.0,
    }
    verl.run(
        "opd",
        student=student,
        data=prompts,
        out=tmp_path,
        steps=1,
        overrides=BATCH | overrides | dumping(tmp_path / "batch.pt"),
    )
    rows = torch.load(tmp_path / "batch.pt")
    for advantage, reference, old in zip(
        *(rows[n] for n in ("advantages", "ref_log_prob", "old_log_probs")), strict=True
    ):
        torch.testing.assert_close(advantage, 2 * (reference - old), atol=2e-3, rtol=0)
    network = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    for prompt, response, found in zip(rows["prompts"], rows["responses"], rows["ref_log_prob"], strict=True):
        expected = plain_log_probs(network, prompt, response).gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=0)
