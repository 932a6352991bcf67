"""Number the Ray jobs of stages so that no two on a machine have the same number.

verl names the socket through which a sampler gets its weights after the Ray job and the rank, in /tmp, and each head
counts its jobs from 1. Of two stages on heads of their own one would wait for ever, or take the weights of the other.
"""

from __future__ import annotations

import secrets
from types import ModuleType

_LEAST, _NIL = 2**16, 2**32 - 1
"""Heads count up to the first, and Ray calls no job by the last."""


def number_at_random(state: ModuleType) -> None:
    """Have `ray._private.state`, which a driver asks for its job's id, draw one of 32 bits instead of counting."""
    import ray

    state.next_job_id = lambda: ray.JobID.from_int(_LEAST + secrets.randbelow(_NIL - _LEAST))
