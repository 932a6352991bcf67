"""Make backward passes raise when differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

Gradients = tuple[torch.Tensor | None, ...]


def first_derivative(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Wrap a backward(ctx, saved, *upstream) as an autograd function's backward(ctx, *upstream).

    `saved` are the context's saved tensors, read once: torch.utils.checkpoint refuses a second read. The pass runs
    without gradients and outside the caller's autocast. With create_graph=True, as for a gradient penalty,
    differentiating the gradients raises; with torch's own once_differentiable such a penalty silently vanishes.
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
    """Guard gradients: apply(count, *gradients, *inputs) -> gradients whose differentiation raises."""

    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "the divergence has no second derivative, so gradient penalties do not work: detach its gradient, or "
            "compute the divergence from log_softmax of the full logits"
        )
