"""Label use and gaps: exact values from small tables, and properties over random ones."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.planner.probe_measures import gap, label_use


def problems(correct, samples=4, unsettled=()):
    rows = [{"id": f"p{i}", "correct": c, "samples": samples} for i, c in enumerate(correct)]
    for place, count in unsettled:
        rows[place]["unsettled"] = count
    return rows


def test_label_use_of_a_known_table():
    found = label_use(problems([0, 4, 1, 3, 0]))
    rates = [0, 1, 0.25, 0.75, 0]
    assert found["pass_at_1"]["mean"] == pytest.approx(0.4)
    assert found["pass_at_1"]["stderr"] == pytest.approx(statistics.stdev(rates) / math.sqrt(5))
    assert found["pass_at_n"]["mean"] == pytest.approx(3 / 5)
    assert (found["mixed"]["mean"], found["never"], found["always"]) == (2 / 5, 2 / 5, 1 / 5)
    assert found["calls_per_useful_group"] == pytest.approx(10)


def test_a_sample_without_a_verdict_is_neither_right_nor_wrong():
    """The second problem has only right verdicts, the third none at all."""
    found = label_use(problems([1, 2, 0, 0], unsettled=[(1, 2), (2, 4)]))
    assert found["problems"] == 3 and found["always"] == pytest.approx(1 / 3)
    assert found["mixed"]["mean"] == found["never"] == pytest.approx(1 / 3)
    assert found["pass_at_1"]["mean"] == pytest.approx((0.25 + 1 + 0) / 3)
    assert found["pass_at_n"]["mean"] == pytest.approx(1 / 2), "of the two with all verdicts"
    with pytest.raises(ValueError, match="verdict"):
        label_use(problems([0], unsettled=[(0, 4)]))


def test_no_useful_group_has_no_price():
    assert label_use(problems([0, 4]))["calls_per_useful_group"] is None


@given(st.lists(st.integers(0, 6), min_size=2, max_size=30))
def test_shares_add_up_and_pass_at_n_counts_problems_with_a_success(correct):
    found = label_use(problems(correct, 6))
    assert found["mixed"]["mean"] + found["never"] + found["always"] == pytest.approx(1)
    assert found["pass_at_n"]["mean"] == pytest.approx(1 - found["never"])
    assert found["pass_at_1"]["mean"] == pytest.approx(sum(correct) / (6 * len(correct)))


def test_the_gap_is_paired_by_problem():
    student, teacher = problems([0, 1, 2, 3]), list(reversed(problems([1, 2, 3, 4])))
    found = gap(student, teacher)
    assert found == {"mean": pytest.approx(0.25), "stderr": pytest.approx(0, abs=1e-12)}
    # Unpaired, the same accuracies have the standard error of two independent means.
    mixed = gap(student, [row | {"id": f"p{3 - i}"} for i, row in enumerate(problems([1, 2, 3, 4]))])
    assert mixed["mean"] == pytest.approx(0.25) and mixed["stderr"] > 0.2


def test_problems_without_verdicts_of_either_model_leave_the_gap():
    found = gap(problems([2, 0, 4], unsettled=[(1, 4)]), problems([4, 4, 0], unsettled=[(2, 4)]))
    assert found == {"mean": pytest.approx(0.5), "stderr": None}


def test_mixed_groups_are_those_in_which_grpo_has_an_advantage():
    """(r - mean) / std of the group is 0 or undefined exactly where all rewards are equal."""
    for rewards in itertools.product((0, 1), repeat=4):
        found = label_use([{"id": "p", "correct": sum(rewards), "samples": 4}])
        assert found["mixed"]["mean"] == float(len(set(rewards)) > 1)
