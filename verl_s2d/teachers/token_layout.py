"""Numbers of a micro-batch's packed tokens where an engine keeps its logits.

Packed means all sequences one after the other, prompt and response, without padding: (tokens,).
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import get_ulysses_sequence_parallel_rank


def in_logits_layout(
    packed: torch.Tensor, micro_batch: TensorDict, rows: int, *, padded: int | None, fill: float = 0.0
) -> torch.Tensor:
    """Packed numbers as (rows,) numbers of the logits that this rank's engine makes.

    Args:
        packed: (tokens,).
        micro_batch: verl's, with nested input_ids.
        rows: how many logits rows this rank has.
        padded: the padded sequence length where the engine does not pack, None where it does.
        fill: what padding gets.
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
    """(tokens,) ids that each packed token's logits predict; that of a sequence's last token is of no sequence."""
    return torch.roll(micro_batch["input_ids"].values(), shifts=-1, dims=0)


def uniform_temperature(micro_batch: TensorDict) -> float:
    """The temperature that the engine divides every logit of the micro-batch by.

    Raises:
        ValueError: there are several.
    """
    temperature = tu.get(micro_batch, "temperature", 1.0)
    if isinstance(temperature, torch.Tensor):
        first = temperature.flatten()[0]
        if not bool((temperature == first).all()):
            raise ValueError("one temperature for a whole micro-batch is needed")
        temperature = first.item()
    return float(temperature)
