from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.sandbox.boxes import require_isolation
from verl_s2d.sandbox.sandbox import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(slots=1)
    require_isolation(sandbox)
    yield sandbox
    sandbox.close()
