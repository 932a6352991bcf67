"""Replace a language model's output embedding during a forward pass, where logits would be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.distributed.fsdp import FSDPModule

# Settings of model families that transform the head's output: hidden states and head alone do not give their logits.
_TRANSFORMS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0, "lm_head_multiplier": 1.0}

AtHead = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def has_plain_head(module: torch.nn.Module, config) -> bool:
    """Report whether the model's logits are exactly hidden @ weight.T + bias of its output embedding.

    Args:
        module: a Hugging Face causal language model, wrapped by FSDP or not.
        config: the model's configuration.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    plain = all(getattr(text, key, None) in (None, neutral) for key, neutral in _TRANSFORMS.items())
    head = type(module.get_output_embeddings())
    # FSDP2 gives a sharded head a subclass of FSDPModule and its original class.
    own = [base for base in head.__mro__[1:] if base is not FSDPModule] if issubclass(head, FSDPModule) else [head]
    return plain and own[0] is torch.nn.Linear


class HeadSeam:
    """Replaces the output embedding by a function during a forward pass.

    Only inside that pass a sharded engine has the head's whole weight, and it reduces the weight's gradients as usual.
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
        """Use function(hidden (batch, tokens, H), weight (V, H), bias) -> (batch, tokens, any) in place of the head."""
        outer, self._function = self._function, function
        try:
            yield
        finally:
            self._function = outer
