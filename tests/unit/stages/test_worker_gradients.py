"""Steps in verl's engine equal plain transformers': in bf16, with TIP's kept tokens, with a temperature under Ulysses.

The cases are in tests/support/ranks/worker.py: one process a rank runs all of its world's.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.ranks.group import problems, run
from tests.support.ranks.worker import cases
from verl_s2d.platforms.environment import cpu_environment


@pytest.fixture(scope="module")
def endings(cached):
    """world -> how each case ended, by rank. A group runs once, all its cases in one go, also when it fails."""

    def group(world):
        for old in cached.glob("[0-9].json"):
            old.unlink()
        (cached / "meeting").unlink(missing_ok=True)
        return run("tests.support.ranks.worker", world, cached, cpu_environment())

    return cache(group)


@pytest.mark.parametrize(("world", "case"), [(world, case) for world in (1, 2) for case in cases(world)])
def test_loss_and_gradient_equal_plain_transformers(world, case, endings):
    assert not (found := problems(endings(world), case)), found
