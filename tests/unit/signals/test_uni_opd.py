"""Uni-OPD's margin against a plain reference in float64, and what 2b becomes with a signal that reads scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_verl import composed
from tests.support.workflow.project import write_project
from verl_s2d.errors import UserError
from verl_s2d.objectives.opd import balanced_rollouts, raised_margin
from verl_s2d.recipe.load import load_recipe
from verl_s2d.signals.in_verl.advantage_estimator import s2d_opd
from verl_s2d.signals.sampled import Sampled
from verl_s2d.signals.signal import reads_scores
from verl_s2d.signals.uni_opd import UniOpd
from verl_s2d.stages.opd.config import read_opd_config
from verl_s2d.stages.planning import make_plan

GROUPS = torch.tensor([3, 1, 3, 1, 3, 1, 7, 7, 9])
CORRECT = torch.tensor([True, True, False, False, False, True, True, True, False])
MASK = torch.tensor([[1, 1, 1]] * 4 + [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 1], [0, 0, 0]])


def batch(seed: int, scale: float = 1.0) -> torch.Tensor:
    values = scale * torch.randn(*MASK.shape, generator=torch.Generator().manual_seed(seed))
    return values.masked_fill(~MASK.bool(), torch.nan)


def gaps(advantages: torch.Tensor, mask: torch.Tensor = MASK) -> dict[int, float]:
    """Group with both outcomes -> gap of mean advantages, row by row."""
    means = {i: advantages[i][mask[i].bool()].double().mean().item() for i in range(len(mask)) if mask[i].any()}
    found = {}
    for group in GROUPS.unique().tolist():
        right, wrong = (
            [means[i] for i in means if GROUPS[i] == group and CORRECT[i] == side] for side in (True, False)
        )
        if right and wrong:
            found[group] = sum(right) / len(right) - sum(wrong) / len(wrong)
    return found


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 5), margin=st.floats(0.01, 3))
def test_a_gap_below_the_margin_becomes_the_margin_and_any_other_stays(seed, scale, margin):
    before = batch(seed, scale)
    after, shift = raised_margin(before, MASK, CORRECT, GROUPS, margin=margin)
    old, new = gaps(before), gaps(after)
    assert old.keys() == new.keys() == {1, 3}
    for group, gap in old.items():
        rows = group == GROUPS
        if gap >= margin:
            assert torch.equal(after[rows], before[rows].nan_to_num(0.0)) and (shift[rows] == 0).all()
        else:
            assert new[group] == pytest.approx(margin, abs=1e-5)
            moved = (after - before)[rows][MASK[rows].bool()]
            signs = torch.where(CORRECT[rows], 1.0, -1.0)[:, None].expand(-1, 3)[MASK[rows].bool()]
            torch.testing.assert_close(moved, signs * (margin - gap) / 2, atol=1e-5, rtol=1e-5)


def test_a_group_of_one_outcome_and_tokens_outside_the_mask_are_untouched():
    before = batch(1)
    after, shift = raised_margin(before, MASK, CORRECT, GROUPS, margin=50.0)
    assert torch.equal(after[6:8], before[6:8].nan_to_num(0.0)) and (shift[6:] == 0).all()
    assert (after[~MASK.bool()] == 0).all() and after.isfinite().all() and not after.requires_grad
    assert gaps(after) == {1: pytest.approx(50, abs=1e-4), 3: pytest.approx(50, abs=1e-4)}


def test_a_batch_without_rollouts_or_tokens_has_no_margin():
    empty = torch.zeros(0, 3)
    found, shift = raised_margin(empty, empty, empty[:, 0].bool(), empty[:, 0].long(), margin=1.0)
    assert found.shape == (0, 3) and shift.shape == (0,)
    nothing = torch.zeros(2, 3)
    found, shift = raised_margin(nothing, nothing, torch.tensor([True, False]), torch.zeros(2).long(), margin=1.0)
    assert torch.equal(found, nothing) and (shift == 0).all()


def test_balance_keeps_as_many_correct_as_wrong_rollouts_at_random():
    kept = torch.stack([balanced_rollouts(MASK, CORRECT, seed=seed) for seed in range(300)])
    counted = MASK.any(-1)
    assert (kept[:, counted & CORRECT].sum(-1) == 3).all() and kept[:, counted & ~CORRECT].all()
    shares = kept[:, counted & CORRECT].double().mean(0)
    # Five rollouts, three of which stay: 0.6 +- 0.028.
    assert (shares - 0.6).abs().max() < 0.12, shares
    assert torch.equal(balanced_rollouts(MASK, CORRECT, seed=5), kept[5])
    for one in (torch.ones_like(CORRECT), torch.zeros_like(CORRECT)):
        assert balanced_rollouts(MASK, one, seed=0).all()


def fields() -> dict[str, torch.Tensor]:
    scores = torch.zeros(*MASK.shape)
    scores[CORRECT, 0] = 1.0
    return {"rm_scores": scores, "uid": GROUPS}


def test_the_signal_is_the_margin_on_the_sampled_advantage():
    old, teacher = batch(2), batch(3)
    read, frozen = fields(), {"teacher": teacher}
    signal = UniOpd(beta=0.5)
    found, returns = s2d_opd(
        torch.zeros(*MASK.shape), MASK, signal=signal, old_log_probs=old, frozen_log_probs=frozen, fields=read
    )
    plain = Sampled(beta=0.5).advantages(old, frozen, MASK)
    expected, shift = raised_margin(plain, MASK, CORRECT, GROUPS, margin=0.4)
    assert torch.equal(found, expected) and torch.equal(found, returns) and not torch.equal(found, plain)
    assert signal.measured(old, frozen, MASK, fields=read) == {"raised_rollouts": pytest.approx((shift > 0).sum() / 8)}
    assert signal.clip == 10 and reads_scores(signal) and not reads_scores(Sampled())

    balanced = UniOpd(beta=0.5, balance=True).advantages(old, frozen, MASK, fields=read)
    silent = (balanced == 0).all(-1) & MASK.any(-1)
    assert silent.sum() == 2 and CORRECT[silent].all()
    assert torch.equal(balanced[~silent], expected[~silent])
    assert torch.equal(balanced, UniOpd(beta=0.5, balance=True).advantages(old, frozen, MASK, fields=read))


@pytest.mark.parametrize(("key", "value"), [("margin", 0), ("margin", -0.4), ("balance", 1), ("clip", 0)])
def test_a_bad_key_is_named(key, value):
    with pytest.raises(UserError) as caught:
        read_opd_config(composed("+s2d.signal.type=uni_opd", f"+s2d.signal.{key}={value}"))
    assert caught.value.key == f"s2d.signal.{key}"


def test_one_rollout_of_a_prompt_has_no_group():
    one = "actor_rollout_ref.rollout.n=1"
    read_opd_config(composed(one))
    with pytest.raises(UserError) as caught:
        read_opd_config(composed(one, "+s2d.signal.type=uni_opd"))
    assert (caught.value.key, caught.value.value) == ("actor_rollout_ref.rollout.n", 1)


def opd(tmp_path, **changes):
    plan = make_plan(load_recipe(write_project(tmp_path, **changes)), run_dir=tmp_path / "run", rows=["half-split"])
    node = next(node for node in plan.order if node.kind == "opd")
    return node, node.stage.command(node, plan.context, 1).argv


def test_2b_with_the_margin_reads_labels_and_calls_the_verifier(tmp_path):
    (plain, silent), (scored, command) = (
        opd(tmp_path / kind, stages__opd__signal=kind) for kind in ("sampled", "uni_opd")
    )
    assert scored.kind == plain.kind and scored.digest != plain.digest
    assert {"labels", "verifier_calls"} == set(scored.stage.consumes) - set(plain.stage.consumes)
    assert scored.settings["verifier"] == "score" and "verifier" in scored.externals
    assert any("data.train_files" in argument and argument.endswith("1h.parquet") for argument in command)
    assert any("1h-prompts.parquet" in argument for argument in silent)
    assert "reward.custom_reward_function.name=compute_score" in command
    assert not any("custom_reward_function" in argument for argument in silent)
    assert "with verifier score" in scored.stage.describe(scored)
