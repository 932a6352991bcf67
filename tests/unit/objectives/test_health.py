"""Agreement of student and teacher on the most likely ids, against sets counted one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.objectives.overlap import TopKHealth, top_k_health

SHAPES = st.tuples(st.integers(0, 7), st.integers(1, 30), st.floats(0, 1), st.integers(0, 2**31 - 1))


def normal(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definition(student: torch.Tensor, teacher: torch.Tensor, k: int) -> list[torch.Tensor]:
    """Token by token, with sets of ids."""
    rows = []
    for z_s, z_t in zip(student, teacher, strict=True):
        top_s, top_t = (set(z.argsort(descending=True)[:k].tolist()) for z in (z_s, z_t))
        p_s, p_t = z_s.softmax(-1), z_t.softmax(-1)
        terms = p_s * (z_s.log_softmax(-1) - z_t.log_softmax(-1))
        sets = (top_s & top_t, top_s - top_t, top_t - top_s)
        masses = [sum(p_t[i] for i in top_s), sum(p_s[i] for i in top_t), sum(p_s[i] for i in top_s & top_t)]
        rows.append([len(top_s & top_t) / k, *masses, *(sum(terms[i] for i in ids) for ids in sets)])
    return list(torch.tensor(rows, dtype=torch.float64).reshape(len(student), len(TopKHealth._fields)).T)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(1, 5))
def test_equals_the_definition_at_any_chunk_size(shape, chunk):
    tokens, vocabulary, share, seed = shape
    student, teacher = (
        normal(tokens, vocabulary, seed=seed, scale=2),
        normal(tokens, vocabulary, seed=seed + 1, scale=2),
    )
    k = 1 + int(share * (vocabulary - 1))
    result = top_k_health(student, teacher, k=k, chunk_tokens=chunk)
    torch.testing.assert_close(list(result), definition(student, teacher, k))


def test_hidden_states_and_heads_give_what_their_logits_give():
    student = LinearLogits(normal(5, 4, seed=0), normal(12, 4, seed=1), temperature=0.7)
    teacher = LinearLogits(normal(5, 6, seed=2), normal(14, 6, seed=3), softcap=2.0)
    z_s = student.hidden @ student.head.T / 0.7
    z_t = 2 * torch.tanh(teacher.hidden @ teacher.head.T / 2)
    expected = definition(z_s[:, :11], z_t[:, :11], 3)
    torch.testing.assert_close(list(top_k_health(student, teacher, k=3, vocab_size=11, chunk_tokens=2)), expected)
    torch.testing.assert_close(list(top_k_health(z_s, teacher, k=3, vocab_size=11)), expected)


def test_ids_behind_the_shared_vocabulary_do_not_count():
    student, teacher = normal(4, 9, seed=0), normal(4, 9, seed=1)
    expected = definition(student, teacher, 3)
    padded = torch.cat([teacher, torch.full((4, 3), 50.0)], dim=1)
    torch.testing.assert_close(list(top_k_health(student, padded, k=3)), expected)
    both = torch.cat([student, torch.full((4, 3), 60.0)], dim=1)
    torch.testing.assert_close(list(top_k_health(both, padded, k=3, vocab_size=9)), expected)


def test_equal_models_overlap_and_opposite_ones_do_not():
    logits = torch.tensor([[1e4, 5e3, 0.0, -1e4]])
    same = top_k_health(logits, logits, k=2)
    assert same == (1, 1, 1, 1, 0, 0, 0)
    apart = top_k_health(logits, -logits, k=2)
    # The student is certain of an id that the teacher finds 20,000 nats less likely than its own.
    assert apart == (0, 0, 0, 0, 0, 2e4, 0)
    everything = top_k_health(logits, -logits, k=4)
    assert everything == (1, 1, 1, 1, 2e4, 0, 0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31 - 1), st.integers(1, 9))
def test_the_terms_of_all_sets_add_up_to_the_reverse_kl(seed, k):
    student, teacher = normal(6, 9, seed=seed, scale=3), normal(6, 9, seed=seed + 1, scale=3)
    found = top_k_health(student, teacher, k=k)
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    terms = log_s.exp() * (log_s - log_t)
    neither = torch.ones_like(terms)
    for logits in (student, teacher):
        neither.scatter_(-1, logits.topk(k).indices, 0.0)
    total = found.reverse_kl_on_both + found.reverse_kl_on_student_only + found.reverse_kl_on_teacher_only
    torch.testing.assert_close(total + (terms * neither).sum(-1), terms.sum(-1))
    assert (found.student_mass_on_both <= found.student_mass_on_teacher_top + 1e-12).all()


def test_an_id_that_one_model_rules_out_is_no_nan():
    student = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    found = top_k_health(student, torch.zeros(1, 3, dtype=torch.float64), k=3)
    assert found.reverse_kl_on_both.item() == pytest.approx(math.log(1.5)) and found.student_mass_on_both == 1
    found = top_k_health(torch.zeros(1, 3, dtype=torch.float64), student, k=3)
    assert found.reverse_kl_on_both.item() == math.inf


def test_masked_tokens_are_never_looked_at_and_nothing_has_a_gradient():
    student = LinearLogits(normal(5, 4, seed=0).requires_grad_(), normal(9, 4, seed=1).requires_grad_())
    teacher = normal(5, 9, seed=2)
    mask = torch.tensor([1, 0, 0, 1, 1])
    expected = definition((student.hidden @ student.head.T)[mask == 1].detach(), teacher[mask == 1], 2)
    student.hidden.data[mask == 0] = math.nan
    teacher[mask == 0] = math.nan
    result = top_k_health(student, teacher, k=2, mask=mask)
    for values, reference in zip(result, expected, strict=True):
        torch.testing.assert_close(values[mask == 1], reference)
        assert (values[mask == 0] == 0).all() and not values.requires_grad
    assert all((values == 0).all() for values in top_k_health(student, teacher, k=2, mask=torch.zeros(5)))
    empty = replace(student, hidden=torch.zeros(0, 4).double())
    assert top_k_health(empty, teacher[:0], k=2).overlap_ratio.shape == (0,)


def test_what_makes_no_sense_is_refused():
    logits = torch.zeros(2, 3)
    for message, call in {
        "student has 2": lambda: top_k_health(logits, torch.zeros(3, 3), k=1),
        "k 0 is not": lambda: top_k_health(logits, logits, k=0),
        "k 16 is not between 1 and the vocabulary's 3": lambda: top_k_health(logits, logits),
        "vocab_size 4": lambda: top_k_health(logits, logits, k=1, vocab_size=4),
        "mask of shape": lambda: top_k_health(logits, logits, k=1, mask=torch.ones(3)),
        "chunk_tokens 0": lambda: top_k_health(logits, logits, k=1, chunk_tokens=0),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
