"""Credits against a plain reference in float64: bounds, signs, schedules, and where they change nothing."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from verl_s2d.errors import UserError
from verl_s2d.objectives.token_credit import anchored_log_probs
from verl_s2d.signals.credit.credit import Credit, ScoredRollouts
from verl_s2d.signals.credit.credit_registry import known_credits, read_credit
from verl_s2d.signals.credit.kdrl import KDRL
from verl_s2d.signals.credit.rlrt import RLRT
from verl_s2d.signals.credit.rlsd import RLSD
from verl_s2d.signals.credit.trrd import TRRD
from verl_s2d.validation import validated

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
CORRECT = torch.tensor([True, False, True])
ADVANTAGES = torch.tensor([[0.7], [-0.4], [0.0]]) * MASK


def rollouts(seed: int = 0, *, scale: float = 0.5, progress: float = 0.0, correct=CORRECT) -> ScoredRollouts:
    """Log-probs of the sampled tokens; not a number outside the mask."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(*MASK.shape, generator=generator)
    teacher = old + scale * torch.randn(*MASK.shape, generator=generator)
    for log_probs in (old, teacher):
        log_probs[~MASK.bool()] = torch.nan
    return ScoredRollouts(old, teacher, MASK, correct, progress)


def expected(given: ScoredRollouts, lam: float, clip: float, *, direction: int, wrong_too: bool) -> torch.Tensor:
    """Token by token, in Python's floats."""
    found = ADVANTAGES.double().clone()
    for i, j in MASK.nonzero().tolist():
        a = ADVANTAGES[i, j].item()
        if not (wrong_too or given.correct[i]):
            continue
        delta = given.teacher_log_probs[i, j].item() - given.old_log_probs[i, j].item()
        sign = (a > 0) - (a < 0)
        weight = min(max(math.exp(direction * sign * delta), 1 - clip), 1 + clip)
        found[i, j] = a * (1 - lam + lam * weight)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("lam", "clip"), [(0.5, 0.2), (1.0, 0.9), (0.1, 0.01)])
def test_weights_are_those_of_the_formulas(seed, lam, clip):
    chosen = {"lambda": lam, "clip": clip}
    scored = rollouts(seed)
    found = RLSD(**chosen).advantages(ADVANTAGES, scored)
    torch.testing.assert_close(found.double(), expected(scored, lam, clip, direction=1, wrong_too=True))
    found = RLRT(**chosen).advantages(ADVANTAGES, scored)
    torch.testing.assert_close(found.double(), expected(scored, lam, clip, direction=-1, wrong_too=False))


@pytest.mark.parametrize("credit", [RLSD(), RLRT()])
def test_a_teacher_like_the_student_changes_nothing(credit):
    assert torch.equal(credit.advantages(ADVANTAGES, rollouts(scale=0)), ADVANTAGES)
    assert credit.measured(ADVANTAGES, rollouts(scale=0)) == {"clipped_weights": 0}


@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0, 300),
    lam=st.floats(0.01, 1),
    clip=st.floats(0.01, 0.99),
    kind=st.sampled_from([RLSD, RLRT]),
)
def test_advantages_keep_their_sign_and_stay_within_the_clip(seed, scale, lam, clip, kind):
    credit = kind(**{"lambda": lam, "clip": clip})
    found = credit.advantages(ADVANTAGES, rollouts(seed, scale=scale))
    assert torch.equal(found.sign(), ADVANTAGES.sign())
    sizes, bound = found.abs(), lam * clip + 1e-5
    assert (sizes <= ADVANTAGES.abs() * (1 + bound)).all() and (sizes >= ADVANTAGES.abs() * (1 - bound)).all()


def test_rlrt_is_rlsd_with_teacher_and_student_exchanged_on_correct_rollouts_alone():
    scored = rollouts(3)
    exchanged = ScoredRollouts(scored.teacher_log_probs, scored.old_log_probs, MASK, CORRECT, 0.0)
    reversed_, forward = RLRT().advantages(ADVANTAGES, scored), RLSD().advantages(ADVANTAGES, exchanged)
    assert torch.equal(reversed_[CORRECT], forward[CORRECT])
    assert torch.equal(reversed_[~CORRECT], ADVANTAGES[~CORRECT])
    assert not torch.equal(forward[~CORRECT], ADVANTAGES[~CORRECT])
    # Where the teacher finds a token of a correct rollout likelier, RLSD raises its credit and RLRT lowers it.
    likelier = (scored.delta > 0) & CORRECT[:, None] & (ADVANTAGES != 0)
    assert likelier.any()
    assert (RLSD().advantages(ADVANTAGES, scored)[likelier] > ADVANTAGES[likelier]).all()
    assert (reversed_[likelier] < ADVANTAGES[likelier]).all()


def test_the_share_of_clipped_weights_counts_response_tokens():
    old = torch.zeros(2, 3)
    teacher = torch.tensor([[1.0, 0.1, 0.0], [-1.0, 1.0, 5.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    scored = ScoredRollouts(old, teacher, mask, torch.tensor([True, False]), 0.0)
    advantages = torch.tensor([[1.0], [-1.0]]) * mask
    assert RLSD().measured(advantages, scored)["clipped_weights"] == pytest.approx(3 / 5)
    assert RLRT().measured(advantages, scored)["clipped_weights"] == pytest.approx(1 / 5)


def test_the_anchor_lies_between_the_old_policy_and_the_teacher():
    scored = rollouts(5)
    for alpha in (0.0, 0.3, 0.5):
        anchor = TRRD(alpha=alpha).anchor(scored)[MASK.bool()]
        old, teacher = scored.old_log_probs[MASK.bool()], scored.teacher_log_probs[MASK.bool()]
        torch.testing.assert_close(anchor, alpha * old + (1 - alpha) * teacher)
    assert torch.equal(TRRD(alpha=0.0).anchor(scored)[MASK.bool()], scored.teacher_log_probs[MASK.bool()])
    whole = torch.zeros(2, 2)
    assert torch.equal(anchored_log_probs(whole, whole + 1, torch.tensor([[1, 0], [0, 1]]), 0.5), 0.5 * torch.eye(2))


def test_a_weight_of_one_for_the_old_policy_is_grpo_and_refused():
    scored = rollouts(6)
    anchor = anchored_log_probs(scored.old_log_probs, scored.teacher_log_probs, MASK, 1.0)
    assert torch.equal(anchor[MASK.bool()], scored.old_log_probs[MASK.bool()])
    with pytest.raises(UserError) as caught:
        read_credit({"type": "trrd", "alpha": 1.0}, key="s2d.credit")
    assert (caught.value.key, caught.value.value) == ("s2d.credit.alpha", 1.0) and "GRPO" in caught.value.remedy


@pytest.mark.parametrize(("progress", "beta"), [(0.0, 0.2), (0.5, 0.101), (1.0, 0.002)])
def test_beta_falls_linearly_from_its_start_to_its_end(progress, beta):
    scored = rollouts(progress=progress)
    torch.testing.assert_close(KDRL().distillation_weights(scored), beta * MASK.float())
    assert KDRL().measured(ADVANTAGES, scored) == {"beta": pytest.approx(beta)}
    wrong = KDRL(rollouts="wrong").distillation_weights(scored)
    torch.testing.assert_close(wrong, beta * MASK.float() * torch.tensor([[0.0], [1.0], [0.0]]))


def test_only_a_beta_that_changes_needs_the_number_of_steps():
    assert KDRL().scheduled and not KDRL(beta=0.1, beta_end=0.1).scheduled
    assert not any(credit.scheduled for credit in (RLSD(), RLRT(), TRRD()))


@pytest.mark.parametrize("credit", [RLSD(), RLRT(), TRRD(), KDRL()])
def test_a_credit_changes_one_thing_and_passes_no_gradient(credit):
    scored = rollouts(7)
    learning = ScoredRollouts(scored.old_log_probs.requires_grad_(), scored.teacher_log_probs, MASK, CORRECT, 0.0)
    results = {
        "advantages": credit.advantages(ADVANTAGES, learning),
        "anchor": credit.anchor(learning),
        "distillation": credit.distillation_weights(learning),
    }
    changed = {"advantages"} if not torch.equal(results["advantages"], ADVANTAGES) else set()
    changed |= {name for name in ("anchor", "distillation") if results[name] is not None}
    assert len(changed) == 1
    assert not any(result.requires_grad for result in results.values() if result is not None)


def test_the_types_of_the_table_in_the_readme_are_those_there_are():
    table = (ROOT / "docs" / "signals.md").read_text().partition("| credit | what it changes |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(known_credits())
    for kind, credit in known_credits().items():
        assert read_credit({"type": kind}, key="s2d.credit") == credit()
        written = credit().model_dump(by_alias=True)
        assert read_credit(written, key="s2d.credit") == credit()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({}, "type"),
        ({"type": "rlds"}, "type"),
        ({"type": "rlsd", "beta": 1}, "beta"),
        ({"type": "rlsd", "lambda": 0}, "lambda"),
        ({"type": "rlsd", "lambda": 1.5}, "lambda"),
        ({"type": "rlrt", "clip": 1}, "clip"),
        ({"type": "rlrt", "clip": 0}, "clip"),
        ({"type": "trrd", "alpha": -0.1}, "alpha"),
        ({"type": "kdrl", "beta": 0}, "beta"),
        ({"type": "kdrl", "beta_end": -1}, "beta_end"),
        ({"type": "kdrl", "rollouts": "correct"}, "rollouts"),
    ],
)
def test_a_bad_key_is_named(section, key):
    with pytest.raises(UserError) as caught:
        read_credit(section, key="s2d.credit")
    assert caught.value.key == f"s2d.credit.{key}" and caught.value.remedy


def test_a_users_own_credit(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from verl_s2d.signals.credit.credit import Credit\n"
        "class Halved(Credit):\n"
        "    by: float = 2.0\n"
        "    def advantages(self, advantages, rollouts):\n"
        "        return advantages / self.by\n"
        "class Other:\n    pass\n"
    )
    mine = read_credit({"type": f"{path}:Halved", "by": 4}, key="credit")
    assert isinstance(mine, Credit) and torch.equal(mine.advantages(ADVANTAGES, rollouts()), ADVANTAGES / 4)
    again = validated(type(mine), mine.model_dump(by_alias=True))
    assert again == mine
    with pytest.raises(UserError, match="Other is no credit"):
        read_credit({"type": f"{path}:Other"}, key="credit")
