"""Our steps on verl's Megatron engine equal plain torch's, however model, sequences and batch are divided.

The cases are in tests/megatron_cases.py.
"""

from __future__ import annotations

import pytest

from tests.megatron_cases import CASES
from tests.ranks import problems, run
from verl_s2d.platforms.environment import cpu_environment


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """How each case ended, by rank: one group runs them all."""
    return run("tests.megatron_ranks", 2, tmp_path_factory.mktemp("megatron"), cpu_environment())


@pytest.mark.parametrize("case", CASES)
def test_a_step_equals_plain_torch(case, endings):
    assert not (found := problems(endings, case)), found
