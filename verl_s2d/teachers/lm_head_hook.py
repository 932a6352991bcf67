"""The seam between a language model and its output embedding, where logits would be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule

# What some families do to the head's output: then hidden states and head are not the whole story of the logits.
_TRANSFORMS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0, "lm_head_multiplier": 1.0}

AtHead = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def has_plain_head(module: torch.nn.Module, config) -> bool:
    """Are the model's logits exactly hidden @ weight.T + bias of its output embedding?

    Args:
        module: a Hugging Face causal language model, wrapped by FSDP or not.
        config: its configuration.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    plain = all(getattr(text, key, None) in (None, neutral) for key, neutral in _TRANSFORMS.items())
    head = type(module.get_output_embeddings())
    # FSDP2 makes a sharded head's class one of its own: FSDPModule before the class that it was.
    own = [base for base in head.__mro__[1:] if base is not FSDPModule] if issubclass(head, FSDPModule) else [head]
    return plain and own[0] is torch.nn.Linear


class HeadSeam:
    """Lets a function stand in for the output embedding during a forward pass.

    Inside that pass, and only there, a sharded engine has the head's whole weight at hand, and gradients that arrive
    at it are reduced as ever.
    """

    def __init__(self, module: torch.nn.Module):
        head = module.get_output_embeddings()
        original = head.forward
        self._function: AtHead | None = None

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            if self._function is None:
                return original(hidden)
            return self._function(hidden, head.weight, head.bias)

        head.forward = forward

    @contextmanager
    def using(self, function: AtHead) -> Iterator[None]:
        """(hidden (batch, tokens, H), weight (V, H), bias) -> (batch, tokens, anything), in place of the logits."""
        outer, self._function = self._function, function
        try:
            yield
        finally:
            self._function = outer
