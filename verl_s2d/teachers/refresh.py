"""Copy a student's weights into a frozen model's engine, in place: the teacher becomes the student of that step.

Both engines are FSDP2 of one world and of one architecture, so each rank copies its own shards: no collective, no
second copy of the model. Parameters that an engine keeps on the CPU stay there.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from verl.workers.engine import BaseEngine


def copy_weights(source: BaseEngine, target: BaseEngine) -> None:
    """Copy this rank's shards of all parameters, converted to the target's dtype.

    Raises:
        ValueError: the engines have other parameters, or shard them in another way.
    """
    _write(_shards(source), target)


def save_weights(engine: BaseEngine, file: Path) -> None:
    """Write this rank's shards of all parameters, as safetensors."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: shard.cpu().contiguous() for name, shard in _shards(engine).items()}, file)


def load_weights(engine: BaseEngine, file: Path) -> None:
    """Read what `save_weights` wrote on this rank of an equal world.

    Raises:
        ValueError: the file holds other parameters.
    """
    _write(load_file(file), engine)


@torch.no_grad()
def _write(shards: dict[str, torch.Tensor], target: BaseEngine) -> None:
    own = _shards(target)
    if {name: shard.shape for name, shard in shards.items()} != {name: shard.shape for name, shard in own.items()}:
        raise ValueError("teacher and student have other parameters, or other shards of them on this rank")
    for name, shard in own.items():
        shard.copy_(shards[name])


def _shards(engine: BaseEngine) -> dict[str, torch.Tensor]:
    parameters = ((name, parameter.detach()) for name, parameter in engine.module.named_parameters())
    return {name: value.to_local() if isinstance(value, DTensor) else value for name, value in parameters}
