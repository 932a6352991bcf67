"""Steps with a teacher for each data source equal plain transformers', one rollout at a time.

The cases are in tests/support/ranks/routed.py: one process a rank runs all of its world's.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.ranks.group import problems, run
from tests.support.ranks.routed import cases
from verl_s2d.platforms.environment import cpu_environment


@pytest.fixture(scope="module")
def endings(cached):
    """world -> how each case ended, by rank."""

    def group(world):
        for old in cached.glob("[0-9].json"):
            old.unlink()
        (cached / "meeting").unlink(missing_ok=True)
        return run("tests.support.ranks.routed", world, cached, cpu_environment())

    return cache(group)


@pytest.mark.parametrize(("world", "case"), [(world, case) for world in (1, 2) for case in cases(world)])
def test_loss_and_gradient_are_those_of_each_rollouts_own_teacher(world, case, endings):
    assert not (found := problems(endings(world), case)), found
