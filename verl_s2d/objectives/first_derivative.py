"""Backward passes that have no derivative of their own, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

Gradients = tuple[torch.Tensor | None, ...]


def first_derivative(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Make an autograd function's backward(ctx, *upstream) of a backward(ctx, saved, *upstream).

    `saved` are the context's saved tensors, read once: torch.utils.checkpoint refuses a second look. The pass runs
    without gradients and outside the caller's autocast. Where a graph of the gradients is asked for (create_graph=True,
    a gradient penalty), differentiating them raises; torch's own once_differentiable lets such a penalty vanish.
    """

    @wraps(backward)
    def whole(ctx, *upstream):
        saved = ctx.saved_tensors
        device = next((gradient.device.type for gradient in upstream if gradient is not None), "cpu")
        with torch.no_grad(), torch.autocast(device, enabled=False):
            gradients = backward(ctx, saved, *upstream)
        if not torch.is_grad_enabled():
            return gradients
        roots = [t for t in (*saved, *upstream) if t is not None and t.requires_grad]
        made = [gradient for gradient in gradients if gradient is not None]
        guarded = iter(_Last.apply(len(made), *made, *roots))
        return tuple(None if gradient is None else next(guarded) for gradient in gradients)

    return whole


class _Last(torch.autograd.Function):
    """apply(count, *gradients, *what they depend on) -> the gradients, which cannot be differentiated."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "a divergence has no second derivative here, so no gradient penalty either: detach its gradient, or "
            "compute the divergence from log_softmax of whole logits"
        )
