"""A teacher's credit in stage 3, and the verifier's verdicts in 2b, in real verl with real vLLM, as verl commands."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from tests.support.batch_dump import BATCH, GRPO_TRAINER, dumping
from tests.support.tiny import write_problems
from tests.support.tiny_training import plain_log_probs
from verl_s2d.signals.credit.credit import ScoredRollouts
from verl_s2d.signals.credit.rlsd import RLSD
from verl_s2d.verifiers.ledgered import verifier_calls

pytestmark = pytest.mark.e2e

EVEN = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(len(solution_str) % 2 == 0)
"""
"""A verifier whose two verdicts both occur in nearly every group of a random model."""


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> Path:
    return write_problems(tmp_path_factory.mktemp("problems") / "problems.parquet", 32)


def scored_by_even(directory: Path) -> dict[str, str]:
    """verl's options with which a run is scored by EVEN and keeps a ledger in directory/verifier."""
    (directory / "verifier.py").write_text(EVEN)
    section = "reward.custom_reward_function"
    return {
        f"{section}.path": "pkg://verl_s2d.verifiers.ledgered",
        f"{section}.name": "compute_score",
        f"+{section}.reward_kwargs.verifier": f"{directory}/verifier.py:compute_score",
        f"+{section}.reward_kwargs.ledger_dir": str(directory / "verifier"),
    }


def groups_of(rows: dict[str, list[torch.Tensor]]) -> list[list[int]]:
    """Rollouts of each prompt."""
    groups = defaultdict(list)
    for i, prompt in enumerate(rows["prompts"]):
        groups[tuple(prompt.tolist())].append(i)
    assert set(map(len, groups.values())) == {BATCH["actor_rollout_ref.rollout.n"]}
    return list(groups.values())


def grpo_advantages(rows: dict[str, list[torch.Tensor]]) -> torch.Tensor:
    """(batch, response): each rollout's score, normalised over the rollouts of its prompt."""
    scores = torch.stack([row.sum() for row in rows["rm_scores"]]).double()
    found = torch.zeros(len(scores), dtype=torch.double)
    for members in groups_of(rows):
        found[members] = (scores[members] - scores[members].mean()) / (scores[members].std() + 1e-6)
    return found[:, None] * pad_sequence(rows["response_mask"], batch_first=True)


def run(verl, credit: dict[str, Any], *, student: Path, teacher: Path, data: Path, out: Path, steps: int):
    """Run GRPO with a credit; return its metrics, its first batch and its ledger."""
    chosen = {f"+s2d.credit.{key}": value for key, value in credit.items()} | {"+s2d.teacher.path": str(teacher)}
    overrides = BATCH | scored_by_even(out) | chosen | dumping(out / "batch.pt", GRPO_TRAINER)
    metrics = verl.run("grpo", student=student, data=data, out=out, steps=steps, overrides=overrides)
    return metrics, torch.load(out / "batch.pt"), verifier_calls(out)


def test_rlsd_weighs_grpos_advantages_by_the_teacher(verl, teacher, student, problems, tmp_path):
    metrics, rows, ledger = run(
        verl, {"type": "rlsd"}, student=student, teacher=teacher, data=problems, out=tmp_path, steps=1
    )
    network = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    for prompt, response, found in zip(rows["prompts"], rows["responses"], rows["ref_log_prob"], strict=True):
        expected = plain_log_probs(network, prompt, response).gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=0)

    padded = {name: pad_sequence(rows[name], batch_first=True) for name in rows if name != "prompts"}
    correct = padded["rm_scores"].sum(-1) >= 1
    scored = ScoredRollouts(padded["old_log_probs"], padded["ref_log_prob"], padded["response_mask"], correct, 0.0)
    plain = grpo_advantages(rows).float()
    torch.testing.assert_close(padded["advantages"], RLSD().advantages(plain, scored), atol=1e-5, rtol=1e-5)
    assert (padded["advantages"] - plain).abs().max() > 0.01
    assert 0 < metrics[1]["s2d/clipped_weights"] <= 1 and metrics[1]["s2d/reverse_kl"] > 0
    assert metrics[1]["actor/grad_norm"] > 0
    assert len(ledger["labels_read"]) == 32 and ledger["verifier_calls"] == 32 * 8


@pytest.mark.slow
def test_the_joint_loss_distils_wrong_rollouts_with_a_coefficient_that_falls(
    verl, teacher, student, problems, tmp_path
):
    credit = {"type": "kdrl", "rollouts": "wrong"}
    metrics, rows, ledger = run(verl, credit, student=student, teacher=teacher, data=problems, out=tmp_path, steps=3)
    assert [metrics[step]["s2d/beta"] for step in (1, 2, 3)] == pytest.approx([0.2, 0.101, 0.002])
    weights = pad_sequence(rows["s2d_distillation_weights"], batch_first=True)
    mask = pad_sequence(rows["response_mask"], batch_first=True)
    wrong = torch.stack([row.sum() for row in rows["rm_scores"]]) < 1
    torch.testing.assert_close(weights, 0.2 * mask * wrong[:, None])
    # The first update starts from the policy that sampled.
    squares = (pad_sequence(rows["old_log_probs"], True) - pad_sequence(rows["ref_log_prob"], True)) ** 2
    expected = (weights * 0.5 * squares).sum() / mask.sum()
    assert metrics[1]["actor/distillation_loss"] == pytest.approx(expected.item(), rel=1e-3)
    assert 0 < metrics[3]["actor/distillation_loss"] < metrics[1]["actor/distillation_loss"]
    torch.testing.assert_close(pad_sequence(rows["advantages"], True), grpo_advantages(rows).float())
    assert len(ledger["labels_read"]) == 32 and ledger["verifier_calls"] == 3 * 32 * 8


def test_the_margin_of_uni_opd_holds_in_every_group_and_its_2b_reads_labels(verl, teacher, student, problems, tmp_path):
    overrides = {"+s2d.teacher.path": str(teacher), "+s2d.signal.type": "uni_opd", "+s2d.signal.margin": 0.5}
    metrics = verl.run(
        "opd",
        student=student,
        data=problems,
        out=tmp_path,
        steps=1,
        overrides=BATCH | scored_by_even(tmp_path) | overrides | dumping(tmp_path / "batch.pt"),
    )
    rows = torch.load(tmp_path / "batch.pt")
    plain = [teacher - old for teacher, old in zip(rows["ref_log_prob"], rows["old_log_probs"], strict=True)]
    correct = [row.sum() >= 1 for row in rows["rm_scores"]]
    raised = 0
    for members in groups_of(rows):
        sides = [[i for i in members if correct[i] == side] for side in (True, False)]
        gaps = []
        for advantages in (plain, rows["advantages"]):
            means = [[advantages[i].double().mean() for i in side] for side in sides]
            gaps.append((sum(means[0]) / len(means[0]) - sum(means[1]) / len(means[1])).item() if all(sides) else None)
        below = gaps[0] is not None and gaps[0] < 0.5
        assert gaps[1] == (pytest.approx(0.5, abs=1e-4) if below else pytest.approx(gaps[0], abs=1e-4))
        raised += len(members) * below
        if not below:
            assert all(torch.allclose(rows["advantages"][i], plain[i], atol=1e-6) for i in members)
    assert 0 < raised < 256 and metrics[1]["s2d/raised_rollouts"] == pytest.approx(raised / 256)
    assert metrics[1]["critic/score/mean"] == pytest.approx(sum(correct).item() / 256)
    ledger = verifier_calls(tmp_path)
    assert len(ledger["labels_read"]) == 32 and ledger["verifier_calls"] == 256
