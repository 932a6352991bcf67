"""Sequences with a prompt of the teacher's own, and the rows in which they predict the student's response."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from verl.utils import tensordict_utils as tu

from verl_s2d.objectives.logits import GivenLogits, LinearLogits
from verl_s2d.teachers.own_prompt import OWN_PROMPTS, aligned, with_own_prompts
from verl_s2d.teachers.token_layout import in_logits_layout

LENGTHS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4)


def nested(rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def batch_of(lengths):
    """Rollouts of distinct ids: prompts from 100, the teacher's from 200, responses from 1,000 times the row."""
    prompts = [list(range(100, 100 + prompt)) for prompt, _, _ in lengths]
    own = [list(range(200, 200 + count)) for _, count, _ in lengths]
    responses = [[1000 * (row + 1) + i for i in range(count)] for row, (_, _, count) in enumerate(lengths)]
    sequences = [a + b for a, b in zip(prompts, responses, strict=True)]
    fields = {"prompts": prompts, "responses": responses, "input_ids": sequences, OWN_PROMPTS: own}
    fields["position_ids"] = [list(range(len(row))) for row in sequences]
    return tu.get_tensordict({name: nested(rows) for name, rows in fields.items()}, {"sp_size": 1})


def test_sequences_are_the_teachers_prompts_and_the_same_responses():
    data = batch_of([(2, 3, 2), (3, 1, 1)])
    own = with_own_prompts(data)
    assert [row.tolist() for row in own["input_ids"].unbind()] == [[200, 201, 202, 1000, 1001], [200, 2000]]
    assert [row.tolist() for row in own["position_ids"].unbind()] == [[0, 1, 2, 3, 4], [0, 1]]
    assert [row.tolist() for row in own["prompts"].unbind()] == [[200, 201, 202], [200]]
    assert [len(row) for row in data["input_ids"].unbind()] == [4, 4], "the student's batch is not changed"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["hidden states", "logits"])
@settings(deadline=None, max_examples=40)
@given(lengths=LENGTHS)
def test_each_row_that_predicts_a_token_of_the_response_comes_from_the_row_that_predicts_it_too(lengths, kind, padded):
    """A teacher whose row holds the next token of its own sequence predicts, aligned, the student's next token."""
    data = batch_of(lengths)
    own = with_own_prompts(data)

    def rows_of(batch):
        ids = [row.tolist() for row in batch["input_ids"].unbind()]
        width = max(map(len, ids)) if padded else 0
        follow = [[*row[1:], -1] + [-2] * max(0, width - len(row)) for row in ids]
        return torch.tensor([token for row in follow for token in row], dtype=torch.float64).unsqueeze(-1), width

    teacher, (student, width) = rows_of(own)[0], rows_of(data)
    logits = GivenLogits(teacher) if kind == "logits" else LinearLogits(teacher, torch.ones(3, 1).double())
    found = aligned(
        logits,
        data,
        own,
        lambda packed: in_logits_layout(packed, data, len(student), padded=width if padded else None),
        padded=padded,
    )
    values = found.logits if kind == "logits" else found.hidden
    assert found.tokens == len(student)
    of_response = student[:, 0] >= 1000
    assert int(of_response.sum()) == sum(count for _, _, count in lengths)
    assert torch.equal(values[of_response], student[of_response])
