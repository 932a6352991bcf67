"""Ask verl and our sampler what they make of an environment in which torch reports GPUs.

    python -m tests.cuda_double.asked verl < [{"name": ..., "argv": [...]}, ...]
    python -m tests.cuda_double.asked sampler < {"model": directory}

Prints one line, `S2D ` and a JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.cuda_double.torch_double import report_gpus

GPUS = 8
_VARIABLES = ("VERL_", "VLLM_", "PYTORCH_", "NCCL_", "OMP_", "TOKENIZERS_")


def verl(commands: list[dict[str, Any]]) -> dict[str, Any]:
    """Facts of verl's platform; for each command the device that verl trains on, and why it refuses, if it does."""
    from omegaconf import OmegaConf
    from verl.plugin.platform import get_platform
    from verl.trainer.main_ppo import auto_set_device
    from verl.utils.device import get_device_name, get_nccl_backend

    from verl_s2d.platforms.plugin_status import STATUS
    from verl_s2d.stages.acceptance import examine

    platform = get_platform()
    process = {
        "platform": platform.vendor_name,
        "device": get_device_name(),
        "collectives": get_nccl_backend(),
        "resource in Ray": platform.ray_resource_name(),
        "shims": sorted(name for name, state in STATUS.shims.items() if state == "shim"),
        "error of the plugin": STATUS.error,
        **{f"rollout servers get {name}": value for name, value in platform.rollout_env_vars().items()},
    }
    stages = {}
    for command in commands:
        answer = examine(command["argv"])
        config = OmegaConf.create(answer["settings"])
        auto_set_device(config)
        stages[command["name"]] = {"refused": answer["refused"], "trainer.device": config.trainer.device}
    return {"process": process, "stages": stages}


def sampler(question: dict[str, Any]) -> dict[str, Any]:
    """Environment in which our sampler imports vLLM, and the arguments of its engine."""
    sys.path.insert(0, str(Path(__file__).with_name("fakes")))
    from verl_s2d.sampling.engine import Sampler

    try:
        Sampler(question["model"], context=64)
    except Exception as made:
        import vllm

        if not isinstance(made, vllm.EngineMade):
            raise
        environment = {k: v for k, v in vllm.ENVIRONMENT.items() if k.startswith(_VARIABLES)}
        return {"environment": environment, "engine": made.args[0] | {"model": "{model}"}}
    raise AssertionError("the sampler made no engine")


def main() -> None:
    report_gpus(GPUS)
    answer = {"verl": verl, "sampler": sampler}[sys.argv[1]](json.load(sys.stdin))
    print(f"\nS2D {json.dumps(answer)}")


if __name__ == "__main__":
    main()
