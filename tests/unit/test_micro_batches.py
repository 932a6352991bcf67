"""A batch has one gradient in verl's workers, however it is cut into micro-batches: tests/micro_batch_ranks.py."""

from __future__ import annotations

from functools import cache

import pytest

from tests.micro_batch_ranks import CASES
from tests.ranks import problems, run
from verl_s2d.platforms.environment import cpu_environment


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """Endings of the cases by rank; a group of ranks runs once, when first asked for."""
    return cache(
        lambda world: run(
            "tests.micro_batch_ranks", world, tmp_path_factory.mktemp(f"ranks{world}"), cpu_environment(), limit=600
        )
    )


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_does_not_depend_on_the_micro_batches(case, endings):
    # Two ranks, whose rollouts differ in length: both have to make equally many micro-batches.
    assert not (found := problems(endings(2), case)), found
