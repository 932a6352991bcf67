"""Hint-delta against a float64 reference of a model, and the filters of proposals."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny import write_model
from verl_s2d.stages.g_zero.hint_delta import hint_delta, within_percentiles
from verl_s2d.stages.g_zero.proposals import Form, Proposal, distinct, parsed

FORM = Form(r"(?s)<question>\s*(?P<question>.+?)\s*</question>\s*<hint>\s*(?P<hint>.+?)\s*</hint>", (5, 40), (2, 10))


def test_hint_delta_is_that_of_a_model_in_float64(tmp_path):
    from transformers import AutoModelForCausalLM

    directory = write_model(tmp_path / "model", seed=3)
    question, hint, answer = [7, 3, 9], [5, 12], [10, 4, 6, 1]

    def log_probs(dtype, prompt):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            found = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        return found[-len(answer) :]

    exact = [log_probs(torch.float64, prompt) for prompt in (question, question + hint)]
    reference = (exact[0].mean() - exact[1].mean()).item()
    assert abs(reference) > 1e-3
    single = [log_probs(torch.float32, prompt).tolist() for prompt in (question, question + hint)]
    assert hint_delta(*single) == pytest.approx(reference, abs=1e-6)
    assert hint_delta(single[0], single[0]) == 0


@given(st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)), min_size=1, max_size=50))
def test_hint_delta_is_the_difference_of_means(pairs):
    without, hinted = zip(*pairs, strict=True)
    exact = sum(map(Fraction, without)) / len(pairs) - sum(map(Fraction, hinted)) / len(pairs)
    assert hint_delta(without, hinted) == pytest.approx(float(exact), abs=1e-12)
    assert hint_delta(without, hinted) == -hint_delta(hinted, without)


def test_answers_without_tokens_or_of_two_lengths_have_none():
    for without, hinted in (([], []), ([-1.0], [-1.0, -2.0])):
        with pytest.raises(ValueError, match="one answer"):
            hint_delta(without, hinted)


def test_percentiles_keep_the_lower_half():
    deltas = [3.0, -1.0, 0.0, 2.0, 1.0]
    assert within_percentiles(deltas, 0, 50).tolist() == [False, True, True, False, True]
    assert within_percentiles(deltas, 0, 100).all() and within_percentiles(deltas, 25, 75).sum() == 3
    assert within_percentiles([1.0, 1.0], 0, 50).all() and within_percentiles([], 0, 50).tolist() == []


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.floats(0, 49), st.floats(51, 100))
def test_percentiles_keep_an_interval(deltas, least, largest):
    kept = within_percentiles(deltas, least, largest)
    inside = np.asarray(deltas)[kept]
    assert all(not inside.size or not inside.min() <= d <= inside.max() for d in np.asarray(deltas)[~kept])


def test_forms_and_lengths():
    def written(question, hint):
        return f"Sure!\n<question> {question} </question>\n<hint>{hint}</hint> Done."

    dropped: Counter[str] = Counter()
    texts = [
        written("What is 3 + 4?", "count"),
        "no form",
        written("Why?", "count"),
        written("What is 3 + 4?", "x" * 11),
    ]
    assert parsed(texts, FORM, dropped) == [Proposal("What is 3 + 4?", "count")]
    assert dropped == {"malformed": 1, "length": 2}
    hostile = "<question>" * 5000
    assert parsed([hostile, "{__class__} <question>{hint}{0}%s</question><hint>{x}</hint>"], FORM, dropped) == [
        Proposal("{hint}{0}%s", "{x}")
    ]


def test_repeated_and_known_questions_are_dropped():
    dropped: Counter[str] = Counter()
    long = "A train leaves the station at noon and travels north for three hours at a constant speed of forty miles"
    proposals = [
        Proposal("What is 3 + 4?", "a"),
        Proposal("what is  $3 + 4$", "b"),
        Proposal("What is 3 - 4?", "c"),
        Proposal(f"{long} an hour. How far does it get?", "d"),
        Proposal("Name a prime.", "e"),
        Proposal("???", "f"),
        Proposal("!!!", "g"),
    ]
    kept = distinct(proposals, ["Name a prime", f"{long}. Where is it?"], dropped)
    assert [p.hint for p in kept] == ["a", "c", "f", "g"]
    assert dropped == {"repeated": 1, "known": 2}
