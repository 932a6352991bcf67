"""Create the workers' process group with a timeout longer than their slowest collective task."""

from __future__ import annotations

from verl.utils import distributed

TIMEOUT_SECONDS = 7200
"""verl's own is that of NCCL, ten minutes. While rank 0 writes the Hugging Face export of a checkpoint all others wait
in a barrier: 59 GB on storage that takes 10 MB/s are 100 minutes."""


def initialize_process_group() -> None:
    """Create the default process group of this worker; verl uses the one that it finds."""
    distributed.initialize_global_process_group_ray(timeout_second=TIMEOUT_SECONDS)
