"""On a CPU sequences are padded, not packed: an equal, cheaper update. Both: tests/support/ranks/cpu_updates.py."""

from __future__ import annotations

import pytest

from tests.support.ranks.cpu_updates import CASES
from tests.support.ranks.group import problems, run
from verl_s2d.platforms.environment import cpu_environment


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return run("tests.support.ranks.cpu_updates", 1, tmp_path_factory.mktemp("updates"), cpu_environment())


@pytest.mark.parametrize("case", CASES)
def test_a_padded_update_has_the_loss_and_gradient_of_a_packed_one(case, ended):
    assert not (found := problems(ended, case)), found
