"""Answer what only a process that has imported verl knows: about this machine, our registrations, and every stage.

    python -m verl_s2d.checks.verl_process < question.json

Reads {"stages": [{name, argv}, ...]} from standard input. Writes lines of `S2D ` and a JSON object, each as soon as it
is known: {"machine": ...}, {"registration": ...}, and, where stages are named, {"stages": {name: {refused, settings}}}.
The prefix tells these lines from verl's output.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from verl_s2d.platforms.subprocess_query import answering


def answers(question: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answers, cheap ones first."""
    yield {"machine": _machine()}
    yield {"registration": _registration()}
    if question["stages"]:
        from verl_s2d.stages.acceptance import examine

        yield {"stages": {command["name"]: examine(command["argv"]) for command in question["stages"]}}


def _machine() -> dict[str, Any]:
    """Describe torch and the accelerators that it sees."""
    import torch

    gpus = []
    if torch.accelerator.is_available():
        module = torch.get_device_module(torch.accelerator.current_accelerator())
        for index in range(torch.accelerator.device_count()):
            free, total = module.mem_get_info(index)
            gpus.append(f"{module.get_device_name(index)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    return {"torch": torch.__version__, "built_for": torch.version.cuda or torch.version.hip, "gpus": gpus}


def _registration() -> dict[str, Any]:
    """Look our names up in verl's registries, and the error of our plugin, which verl does not report."""
    from verl_s2d.platforms.plugin_status import STATUS

    answer: dict[str, Any] = {"error": None, "missing": [], "done": [], "shims": {}}
    try:
        from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
        from verl.trainer.ppo.v1 import get_trainer_cls

        if "s2d_opd" not in ADV_ESTIMATOR_REGISTRY:
            answer["missing"].append("advantage estimator s2d_opd")
        for name in ("s2d_opd", "s2d_grpo"):
            try:
                get_trainer_cls(name)
            except Exception as error:
                answer["missing"].append(f"trainer {name} ({error})")
    except Exception:
        answer["error"] = traceback.format_exc()
    # A plugin that failed is the cause of what fails in verl after it.
    status = dataclasses.asdict(STATUS)
    answer.update({key: value for key, value in status.items() if key in answer and (key != "error" or value)})
    return answer


def main() -> None:
    # The process is short, and collecting among verl's modules costs a tenth of importing them.
    gc.disable()
    tell = answering()
    for answer in answers(json.load(sys.stdin)):
        tell(answer)


if __name__ == "__main__":
    main()
