"""The compiled comparison gives what the plain one gives, compiles seldom, and stands down where it cannot."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.support.divergence_reference import cast, linear, materialised
from verl_s2d.objectives import fused
from verl_s2d.objectives.divergence import divergence
from verl_s2d.objectives.vocabulary import WholeVocabulary

VOCABULARY = 333


def problem(tokens: int, dtype: torch.dtype):
    """Student, teacher and sampled ids."""
    student, teacher = cast(linear(tokens, VOCABULARY, 16, seed=3), dtype), linear(tokens, VOCABULARY, 24, seed=5)
    return student, cast(teacher, dtype), torch.arange(tokens) * 7 % VOCABULARY


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _no_fallback(monkeypatch):
    """A failure to compile is one of these tests, too, unless a test makes it happen."""
    torch._dynamo.reset()
    monkeypatch.setattr(fused, "_broken", False)
    monkeypatch.setattr(fused._logger, "warning", pytest.fail)


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("given_logits", [False, True])
def test_values_byproducts_and_gradients_are_those_of_the_plain_comparison(objective, given_logits):
    found = []
    for compiled in (False, True):
        student, teacher, ids = problem(21, torch.float32)
        weights = torch.linspace(0, 2, len(ids))
        wanted, sides = [student.hidden, student.head], [student, teacher]
        if given_logits:
            sides = [materialised(side).float() for side in sides]
            sides[0][:, -3:] = sides[1][:, -3:] = -torch.inf
            wanted = [sides[0]]
        result = divergence(
            *sides, objective=objective, weights=weights, sampled_ids=ids, chunk_tokens=20, compiled=compiled
        )
        loss = (result.divergence * weights).sum() + result.student_entropy[3] + result.student_log_prob[4]
        found.append((*(values.detach() for values in result), *torch.autograd.grad(loss, wanted)))
    assert graphs() > 0
    for plain, fast in zip(*found, strict=True):
        assert (fast - plain).norm() <= 1e-5 * plain.norm()


def test_no_other_number_of_tokens_is_compiled_for():
    for tokens in (8, 5, 24, 37, 3):
        student, teacher, _ = problem(tokens, torch.float32)
        divergence(student, teacher, compiled=True).divergence.sum().backward()
        if tokens == 8:
            once = graphs()
    assert graphs() == once


def test_more_variants_than_torch_keeps_for_one_function_are_compiled():
    before = graphs()
    with torch._dynamo.config.patch(recompile_limit=2):
        for vocabulary, ids in product((40, 41), (None, torch.arange(4))):
            divergence(*(torch.ones(4, vocabulary),) * 2, sampled_ids=ids, compiled=True)
    assert graphs() == before + 4


def test_a_compiled_caller_gets_the_compiled_result_and_gradient():
    student, teacher, ids = problem(9, torch.float32)

    def loss(hidden):
        found = divergence(replace(student, hidden=2 * hidden), teacher, sampled_ids=ids, weights=ids, compiled=True)
        return (found.divergence * ids).sum() + found.student_entropy.sum()

    plain, compiled = loss(student.hidden), torch.compile(loss)(student.hidden)
    torch.testing.assert_close(compiled, plain)
    for a, b in zip(*(torch.autograd.grad(x, [student.hidden, student.head]) for x in (plain, compiled)), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_not_a_number_is_not_hidden():
    student, teacher, _ = problem(4, torch.float32)
    hidden = student.hidden.detach().clone()
    hidden[2, 0] = torch.nan
    result = divergence(replace(student, hidden=hidden.requires_grad_()), teacher, compiled=True)
    assert result.divergence.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl"])
def test_what_is_infinite_is_infinite_compiled_too(objective):
    sides = [torch.randn(4, VOCABULARY) for _ in range(2)]
    sides[objective == "reverse_kl"][2, 5] = -torch.inf
    results = [divergence(*sides, objective=objective, compiled=compiled).divergence for compiled in (False, True)]
    assert results[0].isinf().tolist() == [False, False, True, False]
    torch.testing.assert_close(*results)


def test_float64_stays_float64():
    student, teacher, _ = problem(6, torch.float64)
    fast, plain = (divergence(student, teacher, objective="jsd", compiled=c).divergence for c in (True, False))
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-13)


def test_where_compiling_fails_there_is_one_warning_and_the_plain_result(monkeypatch):
    def backend(graph, inputs):
        raise OSError("no C++ compiler")

    check_fallback(monkeypatch, torch.compile(fused.compare_, fullgraph=True, backend=backend), "no C++ compiler")


def test_at_the_limit_of_variants_there_is_one_warning_and_the_plain_result(monkeypatch):
    def many(*variant):
        return torch.compile(fused.compare_, fullgraph=True)

    with torch._dynamo.config.patch(recompile_limit=1):
        many()(torch.ones(3, 5), torch.ones(3, 5), None, "forward_kl", 0.5, WholeVocabulary(), False)
        check_fallback(monkeypatch, many(), "fullgraph")


def check_fallback(monkeypatch, broken, reason):
    warnings = []
    monkeypatch.setattr(fused, "_kernel", lambda *_: broken)
    monkeypatch.setattr(fused._logger, "warning", lambda *message: warnings.append(message[0] % message[1:]))
    student, teacher, _ = problem(9, torch.float32)
    for _ in range(2):
        result = divergence(student, teacher, compiled=True).divergence
    torch.testing.assert_close(result, divergence(student, teacher).divergence)
    assert len(warnings) == 1 and reason in warnings[0]
