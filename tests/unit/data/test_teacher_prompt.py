"""Templates of the prompt that a teacher reads in place of the student's."""

from __future__ import annotations

import pytest

from verl_s2d.data.teacher_prompt import columns_of, teacher_messages
from verl_s2d.errors import UserError

ASKED = [{"role": "system", "content": "{x}"}, {"role": "user", "content": r"\\frac{1}{2} + {y}?"}]


def test_columns_are_the_fields_beside_the_prompt():
    assert columns_of("{prompt} Be concise.") == set()
    assert columns_of(r"{prompt} The answer is \boxed{{{answer}}}. {hint}") == {"answer", "hint"}


def test_the_template_goes_around_the_last_message_of_the_user_and_braces_in_it_stay():
    messages = [*ASKED, {"role": "assistant", "content": "?"}, {"role": "user", "content": "{z}"}]
    found = teacher_messages("Be brief. {prompt} It is {answer}, {hint}.", messages, "7", {"hint": "{odd}"})
    assert found[:3] == messages[:3]
    assert found[3] == {"role": "user", "content": "Be brief. {z} It is 7, {odd}."}
    assert messages[3]["content"] == "{z}"


def test_the_prompt_alone_changes_nothing():
    assert teacher_messages("{prompt}", ASKED, "", {}) == ASKED


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("Be concise.", "would not see the problem"),
        (r"{prompt} \boxed{}", "a name alone"),
        ("{prompt} {answer.real}", "a name alone"),
        ("{prompt} {answer[0]}", "a name alone"),
        ("{prompt:>9}", "a name alone"),
        ("{prompt!r}", "a name alone"),
        ("{prompt", "no template"),
    ],
)
def test_what_is_no_template_is_refused(template, words):
    with pytest.raises(UserError, match=words) as caught:
        columns_of(template)
    assert caught.value.value == template and "{{" in caught.value.remedy


@pytest.mark.parametrize("truth", ["", None])
def test_a_problem_without_the_column_is_named(truth):
    with pytest.raises(UserError, match="Problem p7 has no answer"):
        teacher_messages("{prompt} {answer}", ASKED, truth, {"index": "p7"})
    with pytest.raises(UserError, match="has no hint"):
        teacher_messages("{prompt} {hint}", ASKED, "1", {"index": "p7"})
    with pytest.raises(UserError, match="has no message of the user"):
        teacher_messages("{prompt}", ASKED[:1], "1", {})
