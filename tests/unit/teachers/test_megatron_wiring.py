"""Our steps on verl's Megatron engine equal plain torch's, however model, sequences and batch are divided.

The cases are in tests/support/ranks/megatron_cases.py.
"""

from __future__ import annotations

import functools

import pytest

from tests.support.ranks.group import problems, run
from tests.support.ranks.megatron_cases import CASES
from verl_s2d.platforms.environment import cpu_environment


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """World size -> how each of its cases ended, by rank: one group runs them all."""

    @functools.cache
    def of(world: int) -> list[dict[str, str]]:
        return run("tests.support.ranks.megatron", world, tmp_path_factory.mktemp("megatron"), cpu_environment())

    return of


@pytest.mark.parametrize("case", CASES)
def test_a_step_equals_plain_torch(case, endings):
    assert not (found := problems(endings(CASES[case].ranks), case)), found
