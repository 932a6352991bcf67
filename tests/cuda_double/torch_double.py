"""Make this process's torch report CUDA devices. No kernel runs: whoever computes on one fails."""

from __future__ import annotations

import torch

CAPABILITY = (9, 0)


def report_gpus(count: int) -> None:
    """torch.cuda and torch.accelerator answer as on a machine with `count` GPUs."""
    answers = {
        "is_available": True,
        "device_count": count,
        "current_device": 0,
        "get_device_capability": CAPABILITY,
        "get_device_name": "NVIDIA double",
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    answers = {"is_available": True, "device_count": count, "current_accelerator": torch.device("cuda")}
    for name, answer in answers.items():
        setattr(torch.accelerator, name, lambda *_, answer=answer, **__: answer)
