"""Estimated memory of an update is within a quarter of verl's engines': tests/support/ranks/memory.py."""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.ranks.group import problems, run
from tests.support.ranks.memory import cases
from verl_s2d.platforms.environment import cpu_environment

RANKS = "tests.support.ranks.memory"


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """world -> how each case ended, by rank. A group runs once, all its cases in one go, also when it fails."""
    environment = cpu_environment()

    def group(world: int) -> list[dict[str, str]]:
        # Importing verl and building its engines again and again takes a minute of a free core.
        return run(RANKS, world, tmp_path_factory.mktemp(f"ranks{world}"), environment, limit=600)

    return cache(group)


_ON_ONE = [(1, case) for case in cases(1)]
# Half a minute of a core, for what one rank shows but for the shards.
_ON_TWO = [pytest.param(2, case, marks=pytest.mark.slow) for case in cases(2)]


@pytest.mark.parametrize(("world", "case"), [*_ON_ONE, *_ON_TWO])
def test_an_update_takes_what_was_estimated(world, case, endings):
    assert not (found := problems(endings(world), case)), found
