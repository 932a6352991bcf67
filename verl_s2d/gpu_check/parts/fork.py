"""Check part `fork`: vLLM's first process in a sampling stage must not be forked from one that initialised CUDA."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from wrapt import when_imported

from verl_s2d.gpu_check import part_models
from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.platforms.environment import CUDA_ENVIRONMENT

_CHILD_SECONDS = 60


class _Reached(Exception):
    """Raised where Sampler would start vLLM's engine."""


def run(settings: Settings, record: Recorder) -> None:
    """Run Sampler up to the start of its engine, and check the start method and a fork."""
    model = str(part_models.student(settings))
    # The workflow sets these for its stages; without it only the sampler sets them.
    for name in CUDA_ENVIRONMENT:
        os.environ.pop(name, None)
    early = "torch" in sys.modules
    record.expect("torch before the sampler", not early, "imported" if early else "not imported", "not imported")
    seen: dict[str, str | None] = {}

    def stand_in(module: Any) -> None:
        seen.update({name: os.environ.get(name) for name in CUDA_ENVIRONMENT})

        def reached(**_: Any) -> None:
            raise _Reached

        module.LLM = reached

    when_imported("vllm")(stand_in)
    began = time.monotonic()
    try:
        from verl_s2d.sampling.engine import Sampler

        Sampler(model, context=64)
    except _Reached:
        pass
    record.figure("seconds until vLLM is imported", time.monotonic() - began, "s")
    told = ", ".join(f"{name}={value}" for name, value in seen.items())
    record.expect("variables when vLLM is imported", seen == CUDA_ENVIRONMENT, told, "set before the import")
    from vllm.utils.system_utils import get_mp_context

    method = get_mp_context().get_start_method()
    record.expect("start method", method == "spawn", method, "spawn")
    _forked_child(record)


def _forked_child(record: Recorder) -> None:
    import torch

    if not hasattr(torch._C, "_cuda_isInBadFork"):
        record.skip("CUDA in a forked child", "needs a torch with CUDA")
        return
    bad = _bad_fork()
    told = {True: "lost", False: "usable", None: "unknown: the child did not answer"}[bad]
    record.expect("CUDA in a forked child", bad is False, told, "usable")


def _bad_fork() -> bool | None:
    """Tell whether torch reports a bad fork in a child of this process; None if the child does not answer."""
    import torch

    child = os.fork()
    if child == 0:
        os._exit(7 if torch.cuda._is_in_bad_fork() else 6)
    deadline = time.monotonic() + _CHILD_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return {7: True, 6: False}.get(os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    return None
