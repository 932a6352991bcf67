"""Rearrange values of packed tokens into the layout of an engine's logits.

Packed means all sequences concatenated, prompt and response, without padding: (tokens,).
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import get_ulysses_sequence_parallel_rank


def in_logits_layout(
    packed: torch.Tensor, micro_batch: TensorDict, rows: int, *, padded: int | None, fill: float = 0.0
) -> torch.Tensor:
    """Rearrange packed values (tokens,) to (rows,), one for each logits row of this rank.

    Args:
        packed: (tokens,).
        micro_batch: verl's micro-batch, with nested input_ids.
        rows: number of logits rows on this rank.
        padded: the padded sequence length of an engine that pads; None for one that packs.
        fill: value of padding.
    """
    if padded is not None:
        nested = torch.nested.nested_tensor_from_jagged(packed, micro_batch["input_ids"].offsets().to(packed.device))
        return torch.nested.to_padded_tensor(nested, fill, (rows // padded, padded)).flatten()
    parallel = tu.get_non_tensor_data(micro_batch, key="sp_size", default=1)
    # Ulysses pads the packed sequence to a multiple of its size and gives each rank a contiguous part.
    packed = torch.nn.functional.pad(packed, (0, rows * parallel - len(packed)), value=fill)
    rank = get_ulysses_sequence_parallel_rank() if parallel > 1 else 0
    return packed[rank * rows : (rank + 1) * rows]


def next_tokens(micro_batch: TensorDict) -> torch.Tensor:
    """Return the (tokens,) target id of each packed position; undefined at the last position of a sequence."""
    return torch.roll(micro_batch["input_ids"].values(), shifts=-1, dims=0)


def uniform_temperature(micro_batch: TensorDict) -> float:
    """Return the temperature that the engine divides all logits of the micro-batch by.

    Raises:
        ValueError: the micro-batch has several.
    """
    temperature = tu.get(micro_batch, "temperature", 1.0)
    if isinstance(temperature, torch.Tensor):
        first = temperature.flatten()[0]
        if not bool((temperature == first).all()):
            raise ValueError("one temperature for a whole micro-batch is needed")
        temperature = first.item()
    return float(temperature)
