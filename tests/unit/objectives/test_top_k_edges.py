"""The KLs from a top-k teacher where masks, extremes, broken input, low precision and shards meet it."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pytest
import torch

from tests.support.top_k_reference import definition, known, linear, materialised, normal
from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.objectives.top_k import OBJECTIVES, TAILS, top_k_divergence, top_k_forward_kl
from verl_s2d.objectives.vocabulary import VocabularyShard


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("as_linear", [False, True])
def test_masked_tokens_are_never_looked_at(tail, as_linear):
    mask = torch.tensor([1, 0, 2, 0, 1])
    student = linear(5, 11, 0)
    ids, log_p = known(normal(5, 11, seed=5), 4)
    expected = definition(materialised(student)[mask != 0], ids[mask != 0], log_p[mask != 0], tail)
    student.hidden.data[mask == 0] = math.nan
    ids[mask == 0], log_p[mask == 0] = 99, math.nan
    source = student if as_linear else materialised(student).detach().requires_grad_()
    result = top_k_divergence(source, ids, log_p, tail=tail, mask=mask)
    torch.testing.assert_close(result.divergence[mask != 0], expected.detach())
    assert all((values[mask == 0] == 0).all() for values in result)
    result.divergence.sum().backward()
    for leaf in source.tensors if as_linear else (source,):
        assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().sum() > 0
    assert ((student.hidden if as_linear else source).grad[mask == 0] == 0).all()


@pytest.mark.parametrize("tail", TAILS)
def test_no_token_is_an_empty_result_with_zero_gradients(tail):
    student = linear(3, 7, 0, torch.float32)
    ids, log_p = known(normal(3, 7, seed=5), 2)
    result = top_k_divergence(student, ids, log_p, tail=tail, mask=torch.zeros(3))
    result.divergence.sum().backward()
    assert (result.divergence == 0).all() and all((leaf.grad == 0).all() for leaf in student.tensors)
    empty = replace(student, hidden=torch.zeros(0, 4))
    assert top_k_divergence(empty, ids[:0], log_p[:0], tail=tail).divergence.shape == (0,)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_logits_keep_value_and_gradient(tail, extreme):
    student = torch.zeros(3, 6)
    student[0, 0] = student[1, 1] = student[2, 5] = extreme
    teacher = torch.zeros(3, 6)
    teacher[:, :3] = torch.tensor([3.0, 2.0, 1.0])
    ids, log_p = known(teacher, 3)
    student.requires_grad_()
    result = top_k_divergence(student, ids, log_p, tail=tail)
    result.divergence.sum().backward()
    assert all(torch.isfinite(part).all() for part in result) and torch.isfinite(student.grad).all()
    # float64 loses 1 - Q as well, so the tail's mass is summed here too.
    log_q = student.detach().double().log_softmax(-1)
    p = log_p.double().exp()
    if tail == "bucket":
        tail_p = 1 - p.sum(-1)
        expected = (p * (log_p - log_q[:, :3])).sum(-1) + tail_p * (tail_p.log() - log_q[:, 3:].logsumexp(-1))
    else:
        expected = (p * (p.log() - log_q[:, :3])).sum(-1) / p.sum(-1)
        expected = expected - p.sum(-1).log() + log_q[:, :3].logsumexp(-1)
    torch.testing.assert_close(result.divergence.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_tail_too_small_for_one_minus_the_mass_is_still_right():
    # 1 - Q is 0 in float32, and 1 - P is known better than float32 could sum it.
    student, teacher = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([[10.0, 0.0, 0.0]])
    log_p = teacher.double().log_softmax(-1)[:, :1]
    result = top_k_divergence(student, torch.zeros(1, 1).long(), log_p, tail="bucket").divergence.double()
    expected = definition(student, torch.zeros(1, 1).long(), log_p, "bucket")
    assert expected.item() > 5e-4
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=0)


def test_a_teacher_that_is_certain_has_no_tail():
    student = torch.tensor([[1.0, 0.0, -1.0, 0.5]], requires_grad=True)
    for log_p in (torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.02, -math.inf]])):
        result = top_k_divergence(student, torch.tensor([[2, 0]]), log_p, tail="bucket")
        assert result.teacher_mass == 1
        torch.testing.assert_close(result.divergence, -student.log_softmax(-1)[:, 2])
        (gradient,) = torch.autograd.grad(result.divergence, student)
        torch.testing.assert_close(gradient, student.softmax(-1).detach() - torch.tensor([[0.0, 0.0, 1.0, 0.0]]))


def test_a_reverse_kl_to_a_teacher_that_rounds_to_certain_is_finite():
    student = torch.tensor([[1.0, 0.0, -1.0, 0.5]], requires_grad=True)
    result = top_k_divergence(student, torch.tensor([[2]]), torch.tensor([[0.0]]), objective="reverse_kl")
    q = student.detach().double().softmax(-1)[0]
    rest, eps = 1 - q[2], torch.finfo(torch.float32).eps
    torch.testing.assert_close(result.divergence.double()[0], q[2] * q[2].log() + rest * (rest / eps).log())
    result.divergence.sum().backward()
    assert torch.isfinite(student.grad).all() and student.grad[0, 2] < 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_id_that_is_no_token_has_no_part_in_anything(objective):
    student = normal(3, 9, seed=0).requires_grad_()
    ids, log_p = known(normal(3, 9, seed=1), 3)
    more = torch.nn.functional.pad(ids, (0, 2), value=-1), torch.nn.functional.pad(log_p, (0, 2), value=-math.inf)
    found = []
    for known_ids, known_log_p in ((ids, log_p), more):
        value = top_k_divergence(student, known_ids, known_log_p, objective=objective).divergence
        found.append((value, *torch.autograd.grad(value.sum(), student)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)
    with pytest.raises(ValueError, match="top_ids from -1"):
        top_k_divergence(student, more[0], torch.full((3, 5), -3.0), objective=objective)


def test_impossible_and_broken_logits_are_not_hidden():
    ids, log_p = torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]).log()
    for logits, value in {
        # Impossible outside although the teacher goes there; impossible where the teacher goes; not a number.
        (0.0, 0.0, -math.inf, -math.inf): math.inf,
        (0.0, -math.inf, 0.0, 0.0): math.inf,
        (0.0, 0.0, math.nan, 0.0): math.nan,
        (math.nan, 0.0, 0.0, 0.0): math.nan,
    }.items():
        result = top_k_divergence(torch.tensor([logits]), ids, log_p, tail="bucket").divergence.item()
        assert result == value or (math.isnan(result) and math.isnan(value))
    padded = torch.tensor([[1.0, 0.0, 0.0, 50.0, math.nan]], requires_grad=True)
    whole = top_k_divergence(padded[:, :3].detach(), ids, log_p, tail="bucket").divergence
    result = top_k_divergence(padded, ids, log_p, tail="bucket", vocab_size=3).divergence
    torch.testing.assert_close(result, whole)
    result.sum().backward()
    assert (padded.grad[:, 3:] == 0).all() and padded.grad.abs().sum() > 0


@pytest.mark.parametrize("tail", TAILS)
def test_two_backward_passes_and_frozen_parts(tail):
    student = linear(5, 9, 0)
    ids, log_p = known(normal(5, 9, seed=5), 3)
    loss = (top_k_divergence(student, ids, log_p, tail=tail).divergence * torch.linspace(-1, 2, 5)).sum()
    first = torch.autograd.grad(loss, student.tensors, retain_graph=True)
    second = torch.autograd.grad(loss, student.tensors)
    assert all((a == b).all() and a.abs().sum() > 0 for a, b in zip(first, second, strict=True))
    for place, leaf in enumerate(student.tensors):
        only = LinearLogits(*(t if n == place else t.detach() for n, t in enumerate(student.tensors)))
        result = top_k_divergence(only, ids, log_p, tail=tail)
        assert not result.student_mass.requires_grad and not result.teacher_mass.requires_grad
        (alone,) = torch.autograd.grad((result.divergence * torch.linspace(-1, 2, 5)).sum(), [leaf])
        torch.testing.assert_close(alone, first[place])


@pytest.mark.parametrize("tail", TAILS)
def test_bfloat16_inputs_are_multiplied_into_float32(tail):
    student = linear(16, 300, 0, torch.bfloat16)
    ids, log_p = known(normal(16, 300, seed=5, scale=3), 20)
    log_p = log_p.float()
    result = top_k_divergence(student, ids, log_p, tail=tail).divergence
    twin = LinearLogits(*(t.detach().double().requires_grad_() for t in student.tensors))
    expected = definition(materialised(twin), ids, log_p, tail)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    pairs = (torch.autograd.grad(d.sum(), s.tensors) for d, s in ((result, student), (expected, twin)))
    for ours, reference in zip(*pairs, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - reference).norm() / reference.norm() < 3e-3


class TwoThreads(VocabularyShard):
    """A group of two ranks that are threads of this process."""

    def __init__(self, meeting: threading.Barrier, board: dict, first: int):
        self.meeting, self.board, self.first = meeting, board, first

    def _exchange(self, values: torch.Tensor) -> torch.Tensor:
        self.board[self.first] = values.clone()
        self.meeting.wait()
        both = torch.stack([self.board[first] for first in sorted(self.board)])
        self.meeting.wait()
        return both

    def maximum(self, values):
        return values.copy_(self._exchange(values).amax(0))

    def total(self, values):
        return values.copy_(self._exchange(values).sum(0))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("as_linear", [False, True])
# The second shard holds a part of the ids, one of them, or nothing but padding.
@pytest.mark.parametrize("size", [6, 10, 11])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_vocabulary_in_two_parts_gives_the_same(objective, tail, as_linear, size):
    student = linear(5, 14, 0)
    ids, log_p = known(normal(5, 11, seed=5, scale=2), 4)
    upstream = torch.linspace(-1, 2, 5).double()
    source = student if as_linear else materialised(student).detach().requires_grad_()
    options = {"objective": objective, "tail": tail, "vocab_size": 11}
    whole = top_k_divergence(source, ids, log_p, **options)
    leaves = student.tensors if as_linear else (source,)
    expected = torch.autograd.grad((whole.divergence * upstream).sum(), leaves)
    meeting, board, found = threading.Barrier(2, timeout=60), {}, {}

    def rank(first: int, end: int) -> None:
        if as_linear:
            tensors = (student.hidden, student.head[first:end], student.bias[first:end])
        else:
            tensors = (source[:, first:end],)
        tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        part = LinearLogits(*tensors) if as_linear else tensors[0]
        shard = TwoThreads(meeting, board, first)
        result = top_k_divergence(part, ids, log_p, shard=shard, chunk_tokens=2, **options)
        found[first] = result, torch.autograd.grad((result.divergence * upstream).sum(), tensors)

    threads = [threading.Thread(target=rank, args=ends) for ends in ((0, size), (size, 14))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, gradients in found.values():
        for a, b in zip(result, whole, strict=True):
            torch.testing.assert_close(a, b)
        if as_linear:
            torch.testing.assert_close(gradients[0], expected[0])
    together = [torch.cat(parts, 0 if as_linear else 1) for parts in zip(found[0][1], found[size][1], strict=True)]
    for a, b in zip(together[as_linear:], expected[as_linear:], strict=True):
        torch.testing.assert_close(a, b)


def test_the_name_of_release_0_1_is_the_forward_kl():
    student, (ids, log_p) = materialised(linear(4, 9, 0)), known(normal(4, 9, seed=5), 3)
    old = top_k_forward_kl(student, ids, log_p, tail="bucket", mask=torch.tensor([1, 0, 1, 1]))
    new = top_k_divergence(student, ids, log_p, objective="forward_kl", mask=torch.tensor([1, 0, 1, 1]))
    assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
