"""The answer that a response would be scored by, extracted without a label."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.verifiers.registry import extractor_of, resolve


@pytest.mark.parametrize(
    ("options", "response", "answer"),
    [
        ({}, r"so \boxed{1/2}", "1/2"),
        ({}, "Answer: 7", "7"),
        ({}, "#### 72", "72"),
        ({}, "I do not know", None),
        ({}, r"\boxed{}", None),
        ({}, r"\boxed{3", None),
        ({}, r"<think>\boxed{3}</think> no idea", None),
        ({"form": "boxed"}, "Answer: 7", None),
        ({"form": "answer"}, r"\boxed{7}", None),
        ({"convention": "dapo"}, "Answer: 34", "34"),
        ({"convention": "dapo"}, r"it is \boxed{34}", "34"),
        ({"convention": "dapo"}, "it is 34", None),
        ({"convention": "dapo", "form": "answer"}, r"\boxed{34}", None),
        ({"convention": "dapo", "form": "boxed"}, "Answer: 34", None),
        ({"convention": "dapo"}, "Answer: 34" + " x" * 200, None),
    ],
)
def test_math_extracts_what_it_scores(options, response, answer):
    assert extractor_of({"name": "math"} | options)(response) == answer


@given(st.text(max_size=60), st.sampled_from(["math", "dapo"]), st.sampled_from(["boxed", "answer", "either"]))
def test_a_response_without_an_answer_never_scores(response, convention, form):
    verifier = {"name": "math", "convention": convention, "form": form}
    if extractor_of(verifier)(response) is None:
        score = resolve(verifier)
        assert all(score("", response, truth) == 0 for truth in ("7", "34", "0"))
