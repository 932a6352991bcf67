"""An attention that takes flash attention's place on a CPU, so that verl's sequence parallelism around it can be run.

verl exchanges heads for parts of the sequence (Ulysses) in the function that transformers' flash attention calls, and
nowhere else. That function's kernel is for GPUs only; `register` puts one written with torch operations below it.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "flash_on_cpu"


def register() -> None:
    """Make attn_implementation=flash_on_cpu known to transformers, and give verl's wrapper this kernel."""
    import verl.models.transformers.monkey_patch as patched
    from transformers import modeling_utils
    from transformers.integrations.flash_attention import flash_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # Every name with "flash" in it is looked for among the kernels that are installed.
    modeling_utils.lazy_import_flash_attention = lambda *_, **__: None
    ALL_ATTENTION_FUNCTIONS.register(NAME, flash_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)
    patched._flash_attention_forward = causal_attention


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    query_length: int,
    *,
    position_ids: torch.Tensor,
    softmax_scale: float,
    **_: Any,
) -> torch.Tensor:
    """Causal attention within each packed sequence.

    Args:
        query, key, value: (1, tokens, heads, width), of all sequences one after the other.
        position_ids: (1, tokens); a sequence begins where they are zero.

    Returns:
        (1, tokens, heads, width)
    """
    sequence = (position_ids[0] == 0).cumsum(0)
    place = torch.arange(len(sequence))
    visible = (sequence[:, None] == sequence[None]) & (place[:, None] >= place[None])
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, scale=softmax_scale, enable_gqa=True
    )
    return attended.transpose(1, 2)
