"""Stage 2b with a LoRA student in real verl with real vLLM: the teacher is asked, the adapter is handed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.batch_dump import BATCH, dumping
from tests.support.tiny_training import plain_log_probs
from verl_s2d.stages.merge.merge_adapter import merge

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RANK, ALPHA = 4, 8
LORA = {
    "actor_rollout_ref.model.lora_rank": RANK,
    "actor_rollout_ref.model.lora_alpha": ALPHA,
    "actor_rollout_ref.model.lora.merge": True,
    "actor_rollout_ref.rollout.n": 2,
    "actor_rollout_ref.actor.optim.lr": 1.0e-2,
    "trainer.save_freq": 2,
    "actor_rollout_ref.actor.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
}


@pytest.fixture(scope="module", params=["sampled", "reverse_kl"])
def trained(request, verl, teacher, student, prompts, tmp_path_factory):
    """(objective, directory, metrics) of two steps, the first of which saves its batch."""
    out = tmp_path_factory.mktemp(request.param)
    metrics = verl.run(
        "opd",
        student=student,
        data=prompts,
        out=out,
        steps=2,
        overrides=BATCH
        | LORA
        | {
            "+s2d.teacher.path": str(teacher),
            "+s2d.signal.type": request.param,
        }
        | dumping(out / "batch.pt"),
    )
    return request.param, out, metrics


def test_the_teacher_is_asked_and_not_the_student_without_its_adapter(trained, teacher, student):
    objective, out, metrics = trained
    rows = torch.load(out / "batch.pt")
    networks = [AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32) for model in (student, teacher)]
    divergences = []
    for i, (prompt, response) in enumerate(zip(rows["prompts"], rows["responses"], strict=True)):
        log_s, log_t = (plain_log_probs(network, prompt, response) for network in networks)
        if objective == "sampled":
            for log_probs, name in ((log_s, "old_log_probs"), (log_t, "ref_log_prob")):
                sampled = log_probs.gather(1, response[:, None])[:, 0]
                torch.testing.assert_close(rows[name][i].float(), sampled, atol=1e-3, rtol=0)
            divergences.append((log_s - log_t).gather(1, response[:, None])[:, 0])
        else:
            divergences.append((log_s.exp() * (log_s - log_t)).sum(-1))
    # Before the first update the adapter does nothing: the student is the checkpoint that the stage was given.
    expected = torch.cat(divergences).mean().item()
    assert expected > 0.1, "teacher and student are too alike to be told apart"
    assert metrics[1]["s2d/reverse_kl"] == pytest.approx(expected, rel=1e-3)
    if objective == "reverse_kl":
        assert metrics[1]["actor/loss"] == pytest.approx(expected, rel=1e-3)
    assert metrics[1]["actor/grad_norm"] > 0
    assert "materialising both models' logits" not in (out / "log.txt").read_text()


def test_the_rollouts_come_from_the_merged_weights(trained, student, tmp_path):
    objective, out, metrics = trained
    if objective == "sampled":
        # verl hands them over in bf16; the updates changed the probabilities of the same ids by far more.
        assert metrics[2]["training/rollout_probs_diff_mean"] < 5e-3
        merge(out / "checkpoints" / "global_step_2" / "actor", tmp_path / "model")
        rows, changes = torch.load(out / "batch.pt"), []
        networks = [AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32) for m in (student, tmp_path / "model")]
        for prompt, response in zip(rows["prompts"], rows["responses"], strict=True):
            before, after = (plain_log_probs(network, prompt, response).exp() for network in networks)
            changes.append((after - before).gather(1, response[:, None]).abs())
        assert torch.cat(changes).mean() > 0.02


def test_only_the_adapter_has_changed_and_the_merged_model_is_that_of_peft(trained, student, tmp_path):
    checkpoint: Path = trained[1] / "checkpoints" / "global_step_2" / "actor"
    exported = load_file(checkpoint / "huggingface" / "model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(exported[name], parameter), name
        elif ".lora_B." in name:
            assert exported[name].abs().max() > 0, name
    adapted.load_state_dict(exported)

    merge(checkpoint, tmp_path / "model")
    handed_on = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.randint(3, 20, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(handed_on(ids).logits, adapted.merge_and_unload()(ids).logits, rtol=1e-4, atol=1e-4)
