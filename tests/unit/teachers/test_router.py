"""Rollouts go to the teacher of their data source; one that nobody serves is refused, never guessed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.errors import UserError
from verl_s2d.stages.opd.routed_passes import routed_passes
from verl_s2d.stages.opd.routed_teachers import teacher_metrics
from verl_s2d.teachers.frozen_model import FrozenModel
from verl_s2d.teachers.router import Router


def router(**models: tuple[str, list[str]]) -> Router:
    return Router({role: FrozenModel(path=path, serves=serves) for role, (path, serves) in models.items()})


def test_a_problem_goes_to_the_teacher_of_its_data_source():
    both = router(math=("m", ["gsm8k", "dapo"]), code=("c", ["apps"]))
    assert [both.role(source) for source in ("apps", "dapo", "gsm8k")] == ["code", "math", "math"]
    assert both.groups(["apps", "dapo", "apps"]) == [("math", [1]), ("code", [0, 2])]
    assert both.groups(["dapo", "gsm8k"]) == [("math", [0, 1])]


def test_a_data_source_that_nobody_serves_is_refused():
    both = router(math=("m", ["gsm8k"]), code=("c", ["apps"]))
    for look in (lambda: both.role("dapo"), lambda: both.groups(["apps", "dapo"])):
        with pytest.raises(UserError, match="no teacher serves") as caught:
            look()
        assert caught.value.value == "dapo" and "code: apps" in caught.value.remedy
    with pytest.raises(UserError, match="no teacher serves") as caught:
        both.require_all_served({"gsm8k", "apps", "dapo", "aime"})
    assert caught.value.value == "aime, dapo"
    with pytest.raises(UserError, match="loaded for nothing") as caught:
        both.require_all_served({"gsm8k"})
    assert caught.value.key == "models.code.serves" and caught.value.value == ["apps"]
    both.require_all_served(["gsm8k", "apps"])


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=30))
def test_equal_checkpoints_are_asked_once_about_all_rows_in_order(sources):
    """Identical teachers are one teacher to the bit: the pass is the one that verl would make."""
    same = router(first=("t", ["a"]), second=("t", ["b"]))
    assert same.groups(sources) == [("first", list(range(len(sources))))]
    size = len(sources)
    (one,) = routed_passes(same.groups(sources), [3] * size, ranks=1, micro_batch=size)
    assert one.rows == one.asked == list(range(size)) and one.micro_batch == size


@given(
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(1, 6),
    st.data(),
)
def test_every_rollout_is_asked_of_its_teacher_and_few_are_asked_besides(ranks, micro_batch, times, data):
    batch = ranks * (micro_batch or 1) * times
    sources = data.draw(st.lists(st.sampled_from("abc"), min_size=batch, max_size=batch))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=batch, max_size=batch))
    three = router(x=("x", ["a"]), y=("y", ["b"]), z=("z", ["c"]))
    groups = three.groups(sources)
    passes = list(routed_passes(groups, lengths, ranks=ranks, micro_batch=micro_batch))
    assert sorted(row for one in passes for row in one.rows) == list(range(batch))
    for one, (role, rows) in zip(passes, groups, strict=True):
        assert (one.role, one.rows) == (role, rows) and one.asked[: len(rows)] == rows
        assert len(set(one.asked)) == len(one.asked) and len(one.asked) % ranks == 0
        of_rank = len(one.asked) // ranks
        parts = 1
        if micro_batch is None:
            assert one.micro_batch is None
        else:
            parts = math.ceil(math.ceil(len(rows) / ranks) / micro_batch)
            assert one.micro_batch <= micro_batch and of_rank == parts * one.micro_batch
        assert len(one.asked) - len(rows) < ranks * parts + ranks
        filling = one.asked[len(rows) :]
        left = [length for row, length in enumerate(lengths) if row not in set(one.asked)]
        assert not left or all(lengths[row] <= min(left) for row in filling)


def test_metrics_of_each_teacher_make_up_the_batch():
    generator = torch.Generator().manual_seed(0)
    old, teacher = (-torch.rand(5, 7, generator=generator) for _ in range(2))
    mask = (torch.rand(5, 7, generator=generator) < 0.6).long()
    mask[4] = 0
    advantages = torch.where(mask.bool(), 2 * (teacher - old), 0.0)
    roles = ["math", "code", "math", "code", "code"]
    metrics = teacher_metrics(roles, advantages, old, teacher, mask)
    assert metrics["s2d/math/rows"] == 2 and metrics["s2d/code/rows"] == 2
    assert metrics["s2d/math/tokens"] + metrics["s2d/code/tokens"] == int(mask.sum())
    own = mask[[0, 2]].bool()
    difference = (old - teacher).double()[[0, 2]][own]
    assert metrics["s2d/math/reverse_kl"] == pytest.approx(difference.mean().item(), abs=1e-6)
    assert metrics["s2d/math/reverse_kl_max"] == pytest.approx(difference.max().item(), abs=1e-6)
    assert metrics["s2d/math/advantage"] == pytest.approx(-2 * difference.mean().item(), abs=1e-6)
    empty = teacher_metrics(["math"], advantages[4:], old[4:], teacher[4:], mask[4:])
    assert set(empty.values()) == {0}
