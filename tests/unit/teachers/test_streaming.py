"""A teacher under the policy of verl's forward-only FSDP2 engines: its weights come layer by layer."""

from __future__ import annotations

import pytest

from tests.support.ranks import group as ranks


@pytest.mark.parametrize("world", [1, 2])
def test_one_layer_at_a_time_is_whole_and_then_the_head(world, tmp_path):
    assert ranks.problems(ranks.run("tests.support.ranks.streaming", world, tmp_path), "streamed") == ""
