"""A vocabulary divided among ranks gives what a single process does; cases: tests/support/ranks/vocab_parallel.py."""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.ranks.group import problems, run
from tests.support.ranks.vocab_parallel import cases

RANKS = "tests.support.ranks.vocab_parallel"


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """world -> how each case ended, by rank. A group runs once, all its cases in one go, also when it fails."""
    return cache(lambda world: run(RANKS, world, tmp_path_factory.mktemp(f"ranks{world}")))


@pytest.mark.parametrize(("world", "case"), [(world, case) for world in (2, 4) for case in cases(world)])
def test_every_rank_gets_what_a_single_process_does(world, case, endings):
    assert not (found := problems(endings(world), case)), found
