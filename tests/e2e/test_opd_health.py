"""Stage 2b in real verl with its health logged, and with a prompt of the teacher's own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.batch_dump import BATCH, dumping
from tests.support.tiny import write_problems
from tests.support.tiny_training import plain_log_probs
from verl_s2d.sampling.prompts import render_prompt
from verl_s2d.stages.opd.teacher_refresh import FOLDER
from verl_s2d.verifiers.ledgered import verifier_calls

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_student_is_its_own_teacher_behind_another_prompt(verl, student, prompts, tmp_path):
    """CRISP's setting: the teacher scores the response after its own prompt, and becomes the student of step 2."""
    metrics = verl.run(
        "opd",
        student=student,
        data=prompts,
        out=tmp_path,
        steps=3,
        overrides=BATCH
        | {
            "+s2d.teacher.path": str(student),
            "+s2d.teacher_prompt": "1 + {prompt}",
            "+s2d.teacher_refresh": 2,
            "+s2d.travel": True,
            "+s2d.parse_rate": "math",
            "trainer.save_freq": 3,
        }
        | dumping(tmp_path / "batch.pt"),
    )
    rows = torch.load(tmp_path / "batch.pt")
    network = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(student)
    for prompt, response, found in zip(rows["prompts"], rows["responses"], rows["ref_log_prob"], strict=True):
        messages = [{"role": "user", "content": f"1 + {tokenizer.decode(prompt)}"}]
        own = torch.tensor(render_prompt(tokenizer, messages))
        assert len(own) == len(prompt) + 2
        expected = plain_log_probs(network, own, response).gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=0)
    # Before the first update the student is its start, which the refresh leaves alone.
    assert metrics[1]["s2d/travel"] < 1e-3 < metrics[3]["s2d/travel"]
    assert [step for step, data in metrics.items() if "s2d/teacher_refreshed" in data] == [2]
    assert len(list((tmp_path / "checkpoints/global_step_3/actor" / FOLDER).iterdir())) == 1
    rates = [data["s2d/parse_rate"] for data in metrics.values() if "s2d/parse_rate" in data]
    assert rates and set(rates) == {0.0}, "these models finish responses, and write no answer that math reads"


def test_an_exact_signal_from_a_teacher_that_is_told_the_answer(verl, teacher, student, tmp_path):
    problems = write_problems(tmp_path / "problems.parquet", 32)
    metrics = verl.run(
        "opd",
        student=student,
        data=problems,
        out=tmp_path,
        steps=3,
        overrides=BATCH
        | {
            "+s2d.teacher.path": str(teacher),
            "+s2d.signal.type": "reverse_kl",
            "+s2d.teacher_prompt": "{answer} + {prompt}",
            "+s2d.label_ledger": str(tmp_path / "verifier"),
            "+s2d.travel": True,
            "+s2d.health_top_k": 4,
        },
    )
    told = verifier_calls(tmp_path)
    assert told["verifier_calls"] == 0 and len(told["labels_read"]) == 32
    assert metrics[1]["s2d/travel"] < 1e-3 < metrics[3]["s2d/travel"]
    for data in metrics.values():
        quarters = [data[f"s2d/overlap_q{number}"] for number in range(1, 5)]
        assert min(quarters) <= data["s2d/overlap_ratio"] <= max(quarters)
        assert 0 < data["s2d/student_mass_on_both"] <= data["s2d/student_mass_on_teacher_top"] <= 1
        assert data["s2d/teacher_scored_tokens"] == data["s2d/sampled_tokens"] > 0
