"""The public objectives where callers differ: autocast, checkpoints, no_grad, second derivatives, ids ruled out."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from tests.support.divergence_reference import OBJECTIVES, cast, definition, linear, materialised, normal
from verl_s2d.objectives import differentiable
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.objectives.overlap import top_k_health
from verl_s2d.objectives.top_k import top_k_divergence

INF = math.inf
NAMES = ("forward_kl", "reverse_kl", "jsd")


def calls(student: LinearLogits, teacher: LinearLogits) -> dict:
    """Every objective, from hidden states and from logits: name -> (tokens,) of the student's tensors."""
    top = materialised(teacher).log_softmax(-1).topk(4)
    weights = torch.linspace(0.5, 2, student.tokens)
    sources = {
        "hidden states": lambda s: s,
        "logits": lambda s: materialised(s).to(s.dtype),
    }
    found = {}
    for (name, source), objective in product(sources.items(), NAMES):
        found[f"{objective}, {name}"] = lambda s, source=source, objective=objective: (
            divergence(source(s), teacher, objective=objective).divergence
        )
        found[f"{objective}, {name}, weights known"] = lambda s, source=source, objective=objective: (
            weights * divergence(source(s), teacher, objective=objective, weights=weights).divergence
        )
    for name, source in sources.items():
        found[f"top-k, {name}"] = lambda s, source=source: (
            top_k_divergence(source(s), top.indices, top.values, tail="bucket").divergence
        )
    return found


def problem() -> tuple[LinearLogits, LinearLogits]:
    student, teacher = linear(6, 50, 8, 0, bias=normal(50, seed=7)), linear(6, 50, 10, 2)
    return cast(student, torch.float32), replace(teacher, hidden=teacher.hidden.float(), head=teacher.head.float())


CALLS = calls(*problem())


def value_and_gradients(call, student: LinearLogits) -> list[torch.Tensor]:
    value = call(student)
    return [value.detach(), *torch.autograd.grad(value.sum(), student.tensors)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_under_a_checkpoint_values_and_gradients_are_the_same(name, reentrant):
    student, _ = problem()
    expected = value_and_gradients(CALLS[name], student)

    def inside(*tensors):
        return CALLS[name](replace(student, **dict(zip(("hidden", "head", "bias"), tensors, strict=True))))

    loss = checkpoint(inside, *student.tensors, use_reentrant=reentrant)
    loss.sum().backward()
    for ours, same in zip([loss.detach(), *(t.grad for t in student.tensors)], expected, strict=True):
        torch.testing.assert_close(ours, same)


@pytest.mark.parametrize("name", [name for name in CALLS if "hidden" in name])
def test_autocast_around_the_call_and_its_backward_changes_nothing(name):
    student, _ = problem()
    expected = value_and_gradients(CALLS[name], student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradients(CALLS[name], student)
    for ours, same in zip(found, expected, strict=True):
        assert (ours == same).all()


def test_autocast_changes_nothing_in_the_health_of_a_pair():
    student, teacher = problem()
    expected = top_k_health(student, teacher, k=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = top_k_health(student, teacher, k=5)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_a_gradient_penalty_raises_however_it_is_taken(name):
    student, _ = problem()
    loss = CALLS[name](student).sum()
    (gradient,) = torch.autograd.grad(loss, student.hidden, create_graph=True)
    torch.testing.assert_close(gradient, value_and_gradients(CALLS[name], student)[1])
    for differentiate in (
        lambda: gradient.square().sum().backward(retain_graph=True),
        lambda: torch.autograd.grad(gradient.square().sum() + loss, student.hidden, retain_graph=True),
        lambda: torch.autograd.grad(gradient.sum(), student.head, allow_unused=True, retain_graph=True),
    ):
        with pytest.raises(RuntimeError, match="no second derivative"):
            differentiate()
    # Asked for, but not differentiated: nothing to complain of.
    torch.autograd.grad(loss, student.hidden)


def test_a_second_derivative_by_the_upstream_gradient_alone_raises_too():
    student, teacher = problem()
    upstream = torch.ones(6, requires_grad=True)
    value = divergence(student, teacher).divergence
    (gradient,) = torch.autograd.grad(value, student.hidden, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), upstream)


def test_weights_make_no_gradients_where_nobody_can_ask_for_them(monkeypatch):
    student, teacher = problem()
    weights = torch.ones(6)
    expected = divergence(student, teacher, weights=weights).divergence
    monkeypatch.setattr(differentiable, "linear_gradients", pytest.fail)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert (divergence(student, teacher, weights=weights).divergence == expected).all()
    frozen = replace(student, hidden=student.hidden.detach(), head=student.head.detach(), bias=None)
    assert not divergence(frozen, teacher, weights=weights).divergence.requires_grad


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_tensors_that_are_not_tokens_by_ids_are_refused_with_shape_and_remedy(shape):
    wrong, right, head = torch.zeros(shape), torch.zeros(6, 5), torch.zeros(7, 5)
    ids = torch.zeros(6, 1, dtype=torch.long)
    for call in (
        lambda: divergence(wrong, right),
        lambda: divergence(right, wrong),
        lambda: divergence(LinearLogits(wrong, head), right),
        lambda: top_k_divergence(wrong, ids, ids.float(), tail="bucket"),
        lambda: top_k_health(wrong, right),
    ):
        with pytest.raises(ValueError, match=rf"shape \({shape[0]},.*flatten"):
            call()
    with pytest.raises(ValueError, match=r"bias of shape \(5,\), head of shape \(7, 5\)"):
        LinearLogits(right, head, torch.zeros(5))


# Ids ruled out.


def exact_gradient(student: torch.Tensor, teacher: torch.Tensor, objective: str) -> torch.Tensor:
    """The formulas of comparison.py in float64; 0 where p_S is 0, but for p_T of the forward KL."""
    log_s, log_t = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    p_s, value = log_s.exp(), definition(student, teacher, objective).unsqueeze(-1)
    if objective == "forward_kl":
        return p_s - log_t.exp()
    log_m = torch.logaddexp(log_t, log_s) - math.log(2)
    if objective == "reverse_kl":
        inner = log_s - log_t - value
    else:
        inner = 0.5 * (log_s - log_m - (p_s * (log_s - log_m)).nan_to_num(0).sum(-1, keepdim=True))
    inner = torch.where(value.isinf(), math.nan, inner)
    return torch.where(p_s == 0, 0.0, p_s * inner)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 6), st.integers(2, 12), st.integers(0, 2**31 - 1), OBJECTIVES, st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_values_and_gradients_with_ids_ruled_out_on_either_side(tokens, vocabulary, seed, objective, by_bias, dtype):
    """From logits, or by -inf in a bias; every token keeps an id on each side."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for place in range(2):
        side = linear(tokens, vocabulary, 3, seed + 10 * place)
        out = torch.rand((1 if by_bias else tokens), vocabulary, generator=generator) < 0.3
        out.scatter_(1, torch.randint(0, vocabulary, (len(out), 1), generator=generator), False)
        bias = torch.zeros(vocabulary).double()
        side = LinearLogits(side.hidden.to(dtype), side.head.to(dtype), bias.to(dtype))
        if by_bias:
            sides.append(replace(side, bias=torch.where(out[0], -INF, 0.0).to(dtype)))
        else:
            sides.append(materialised(side).to(dtype).masked_fill(out, -INF))
    student, teacher = sides
    exact = [(materialised(side) if by_bias else side).double() for side in sides]
    ids = torch.randint(0, vocabulary, (tokens,), generator=generator)
    leaf = cast(student, dtype) if by_bias else student.detach().requires_grad_()
    result = divergence(leaf, teacher, objective=objective, sampled_ids=ids)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 2e-6}
    torch.testing.assert_close(result.divergence.double(), definition(*exact, objective), **tolerance)
    for found, logits in ((result.student_log_prob, exact[0]), (result.teacher_log_prob, exact[1])):
        torch.testing.assert_close(found.double(), logits.log_softmax(-1).gather(1, ids[:, None])[:, 0], **tolerance)
    gradient = exact_gradient(*exact, objective)
    finite = result.divergence.isfinite() | (torch.tensor(objective == "forward_kl"))
    if by_bias:
        upstream = finite.to(result.divergence.dtype)
        found = torch.autograd.grad(result.divergence, [leaf.hidden, leaf.bias], upstream)
        wanted = torch.where(finite.unsqueeze(-1), gradient, 0.0)
        if finite.all():
            rough = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else tolerance
            torch.testing.assert_close(found[0].double(), wanted @ leaf.head.detach().double(), **rough)
            torch.testing.assert_close(found[1].double(), wanted.sum(0), **rough)
    else:
        rough = {"rtol": 1e-2, "atol": 1e-3} if dtype == torch.bfloat16 else tolerance
        (found,) = torch.autograd.grad(result.divergence.sum(), leaf)
        torch.testing.assert_close(found.double(), gradient, equal_nan=True, **rough)


def test_an_infinite_divergence_says_so_and_stays_in_its_row():
    student = torch.zeros(2, 4, requires_grad=True)
    teacher = torch.tensor([[0.0, 0, 0, -INF], [0, 0, 0, 0]])
    result = divergence(student, teacher, objective="reverse_kl", sampled_ids=torch.tensor([3, 3]))
    assert result.divergence.tolist() == [INF, 0]
    assert result.teacher_log_prob[0] == -INF and result.student_log_prob[0].item() == pytest.approx(-math.log(4))
    (gradient,) = torch.autograd.grad(result.divergence.sum(), student)
    assert gradient[0].isnan().all() and (gradient[1] == 0).all()
    reverse = divergence(teacher.requires_grad_(), student, sampled_ids=torch.tensor([3, 3]))
    assert reverse.divergence.tolist() == [INF, 0] and reverse.student_log_prob[0] == -INF
    (gradient,) = torch.autograd.grad(reverse.divergence[0], teacher)
    torch.testing.assert_close(gradient[0], torch.tensor([1 / 3 - 1 / 4] * 3 + [-1 / 4]))
    top = student.detach()[:1].log_softmax(-1)
    same = top_k_divergence(teacher[:1], torch.arange(4)[None], top, tail="bucket").divergence
    assert same.item() == INF
    (gradient_of_top,) = torch.autograd.grad(same.sum(), teacher)
    torch.testing.assert_close(gradient_of_top[0], gradient[0])


def test_the_lowest_number_rules_nothing_out():
    teacher = torch.tensor([[0.0, 0, 0, torch.finfo().min]])
    value = divergence(torch.zeros(1, 4), teacher, objective="reverse_kl").divergence.item()
    assert value == pytest.approx(-torch.finfo().min / 4, rel=1e-6)


def test_entropy_and_log_probability_of_a_student_with_ids_ruled_out_are_differentiable():
    logits = torch.tensor([[0.3, -1.0, -INF, 2.0]], dtype=torch.float64, requires_grad=True)
    result = divergence(logits, torch.zeros(1, 4).double(), sampled_ids=torch.tensor([0]))
    kept = logits.detach()[:, [0, 1, 3]].requires_grad_()
    log_p = kept.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum()
    for ours, expected in ((result.student_entropy, entropy), (result.student_log_prob, log_p[0, 0])):
        (found,), (exact,) = (
            torch.autograd.grad(value.sum(), leaf, retain_graph=True)
            for value, leaf in ((ours, logits), (expected, kept))
        )
        torch.testing.assert_close(found[:, [0, 1, 3]], exact)
        assert found[0, 2] == 0


@pytest.mark.parametrize("objective", NAMES)
@pytest.mark.parametrize("broken", [math.nan, INF])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_a_number_stays_in_its_row_beside_ids_ruled_out(objective, broken, side):
    sides = [torch.tensor([[0.0, 1, -INF], [0, 1, 2], [-INF, -INF, -INF]]) for _ in range(2)]
    sides[side][1, 1] = broken
    sides[1 - side][2] = 0
    leaf = sides[0].requires_grad_()
    value = divergence(*sides, objective=objective).divergence
    assert value[0].item() == pytest.approx(0, abs=1e-6) and value[1:].isnan().all()
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert gradient[0].isfinite().all() and gradient[1].isnan().any() and gradient[2].isnan().any()
