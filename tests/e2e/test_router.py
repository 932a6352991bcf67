"""Two teachers of two data sources in real verl with real vLLM on two ranks: each is asked about its own rollouts."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.batch_dump import dumping
from tests.support.tiny import write_model
from tests.support.tiny_training import plain_log_probs, sharpen

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def source_of(text: str) -> str:
    """Sums that begin with a small number are few, so that the teachers' shares differ."""
    return "low" if int(text.split()[0]) < 3 else "high"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return sharpen(write_model(tmp_path_factory.mktemp("other"), seed=9, hidden=64, layers=3), 3.0)


@pytest.fixture(scope="module")
def of_two_sources(prompts, tmp_path_factory):
    rows = pq.read_table(prompts).to_pylist()
    for row in rows:
        row["data_source"] = source_of(row["prompt"][0]["content"])
    assert {row["data_source"] for row in rows} == {"low", "high"}
    path = tmp_path_factory.mktemp("sources") / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def two_teachers(teacher, other):
    return {
        "+s2d.models.small.path": str(teacher),
        "+s2d.models.small.serves": ["low"],
        "+s2d.models.large.path": str(other),
        "+s2d.models.large.serves": ["high"],
        "trainer.n_gpus_per_node": 2,
    }


@pytest.fixture(scope="module")
def routed(verl, teacher, student, other, of_two_sources, tmp_path_factory):
    """(first batch, metrics, teachers by data source, tokenizer) of a run of three steps."""
    out = tmp_path_factory.mktemp("routed")
    overrides = {
        "+s2d.signal.gate": [0.5, 5.0],
        "actor_rollout_ref.actor.use_dynamic_bsz": False,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 8,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 8,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 8,
    }
    metrics = verl.run(
        "opd",
        student=student,
        data=of_two_sources,
        out=out,
        steps=3,
        overrides=two_teachers(teacher, other) | overrides | dumping(out / "batch.pt"),
    )
    teachers = {"low": teacher, "high": other}
    return torch.load(out / "batch.pt"), metrics, teachers, AutoTokenizer.from_pretrained(teacher)


def test_every_rollout_has_the_log_probs_of_its_own_teacher(routed):
    rows, metrics, teachers, tokenizer = routed
    networks = {s: AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for s, p in teachers.items()}
    found, tokens = dict.fromkeys(teachers, 0), dict.fromkeys(teachers, 0)
    for prompt, response, mask, answer in zip(
        *(rows[name] for name in ("prompts", "responses", "response_mask", "ref_log_prob")), strict=True
    ):
        words = tokenizer.decode(prompt, skip_special_tokens=True)
        source = source_of(words[words.index(next(c for c in words if c.isdigit())) :])
        found[source] += bool(mask.any())
        tokens[source] += int(mask.sum())
        expected = plain_log_probs(networks[source], prompt, response).gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(answer.float(), expected, atol=1e-3, rtol=0)
    assert min(found.values()) > 0 and found["low"] != found["high"]
    for role, source in (("small", "low"), ("large", "high")):
        assert metrics[1][f"s2d/{role}/rows"] == found[source] and metrics[1][f"s2d/{role}/tokens"] == tokens[source]


def test_the_teachers_metrics_make_up_the_steps(routed):
    for step in routed[1].values():
        parts = [(step[f"s2d/{role}/tokens"], role) for role in ("small", "large") if f"s2d/{role}/tokens" in step]
        assert sum(tokens for tokens, _ in parts) == step["s2d/sampled_tokens"] == step["s2d/teacher_scored_tokens"]
        mean = sum(tokens * step[f"s2d/{role}/reverse_kl"] for tokens, role in parts) / step["s2d/sampled_tokens"]
        assert mean == pytest.approx(step["s2d/reverse_kl"], abs=1e-4)
        assert all(step[f"s2d/{role}/advantage"] == pytest.approx(-step[f"s2d/{role}/reverse_kl"], abs=1e-2)
                   for _, role in parts)  # fmt: skip


def test_engines_that_agree_gate_nothing_and_hardly_weigh(routed):
    rows, metrics, _, _ = routed
    assert metrics[1]["s2d/gated_tokens"] == 0
    for mask, advantage, teacher, old in zip(
        *(rows[name] for name in ("response_mask", "advantages", "ref_log_prob", "old_log_probs")), strict=True
    ):
        torch.testing.assert_close(advantage, torch.where(mask.bool(), teacher - old, 0.0), atol=2e-3, rtol=2e-3)


def test_an_exact_signal_compares_each_rollout_with_its_own_teacher(
    verl, teacher, student, other, of_two_sources, tmp_path
):
    exact = {"+s2d.signal.type": "reverse_kl", "+s2d.health_top_k": 4}
    metrics = verl.run(
        "opd",
        student=student,
        data=of_two_sources,
        out=tmp_path,
        steps=2,
        overrides=two_teachers(teacher, other) | exact,
    )
    for step in metrics.values():
        parts = [(step[f"s2d/{role}/tokens"], role) for role in ("small", "large") if f"s2d/{role}/tokens" in step]
        assert sum(tokens for tokens, _ in parts) == step["s2d/sampled_tokens"] == step["s2d/teacher_scored_tokens"]
        for name in ("reverse_kl", "teacher_entropy", "overlap_ratio"):
            mean = sum(tokens * step[f"s2d/{role}/{name}"] for tokens, role in parts) / step["s2d/sampled_tokens"]
            assert mean == pytest.approx(step[f"s2d/{name}"], rel=1e-3), name
        assert not any(role in name.split("/") and name.startswith("actor/") for name in step for _, role in parts)
