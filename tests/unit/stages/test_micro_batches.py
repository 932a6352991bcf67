"""A batch has one gradient in verl's workers, however it is cut: tests/support/ranks/micro_batches.py."""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.ranks.group import problems, run
from tests.support.ranks.micro_batches import CASES
from verl_s2d.platforms.environment import cpu_environment

RANKS = "tests.support.ranks.micro_batches"


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """Endings of the cases by rank; a group of ranks runs once, when first asked for."""
    return cache(
        lambda world: run(
            RANKS,
            world,
            tmp_path_factory.mktemp(f"ranks{world}"),
            cpu_environment(),
            limit=600,
        )
    )


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_does_not_depend_on_the_micro_batches(case, endings):
    # Two ranks, whose rollouts differ in length: both have to make equally many micro-batches.
    assert not (found := problems(endings(2), case)), found
