"""Make the divergence differentiable. Both autograd functions save their inputs, and no logits computed from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from verl_s2d.objectives.chunked_pass import Gradients, Settings, compare_rows, linear_gradients, logits_gradient_
from verl_s2d.objectives.first_derivative import first_derivative
from verl_s2d.objectives.logits import GivenLogits, LinearLogits

# Indices of the other differentiable results, with their names in `divergence_kernel`.
_BESIDE = {1: "student_entropy", 4: "student_log_prob"}


class _Divergence(torch.autograd.Function):
    """apply(student, teacher, rows, ids, hint, settings, *tensors of student, *tensors of teacher) -> six (tokens,)."""

    @staticmethod
    def _begin(ctx, student, teacher, rows, ids, hint, settings, tensors) -> None:
        ctx.save_for_backward(rows, ids, hint, *tensors)
        ctx.rebuild = (student.rebuild, teacher.rebuild)
        ctx.split, ctx.settings = len(student.tensors), settings
        ctx.set_materialize_grads(False)

    @staticmethod
    def _again(ctx, saved: tuple) -> tuple[GivenLogits | LinearLogits, GivenLogits | LinearLogits]:
        """Rebuild student and teacher from the saved tensors."""
        tensors = saved[3:]
        student, teacher = ctx.rebuild
        return student(*tensors[: ctx.split]), teacher(*tensors[ctx.split :])

    @staticmethod
    def _spread(ctx, values: torch.Tensor, rows: torch.Tensor, tokens: int, ids: torch.Tensor | None):
        """Scatter the values of rows to all tokens."""
        results = values.new_zeros(len(values), tokens)
        if ids is None:
            results[-2:] = float("nan")
        results[:, rows] = values
        results = tuple(row.clone() for row in results)
        differentiable = (0, *(_BESIDE if ids is not None else (1,)))
        ctx.mark_non_differentiable(*(row for place, row in enumerate(results) if place not in differentiable))
        return results

    @staticmethod
    def _beside(ctx, rows: torch.Tensor, upstream: tuple) -> Iterator[tuple[Settings, torch.Tensor]]:
        """Yield settings and row weights for each further result that received a gradient."""
        for place, name in _BESIDE.items():
            if upstream[place] is not None:
                yield replace(ctx.settings, objective=name), upstream[place][rows]


class GivenDivergence(_Divergence):
    """Compare given logits; backward repeats the comparison, chunk by chunk."""

    @staticmethod
    def forward(ctx, student, teacher, rows, ids, hint, settings, *tensors):
        _Divergence._begin(ctx, student, teacher, rows, ids, hint, settings, tensors)
        return _Divergence._spread(ctx, compare_rows(student, teacher, rows, ids, settings), rows, student.tokens, ids)

    @staticmethod
    @first_derivative
    def backward(ctx, saved, *upstream):
        student, teacher = _Divergence._again(ctx, saved)
        rows, ids, _ = saved[:3]
        gradient = torch.zeros_like(student.logits)
        if upstream[0] is not None:
            logits_gradient_(gradient, student, teacher, rows, None, upstream[0][rows], ctx.settings)
        for settings, weights in _Divergence._beside(ctx, rows, upstream):
            logits_gradient_(gradient, student, teacher, rows, ids, weights, settings)
        return *(None,) * 6, gradient, *(None for _ in teacher.tensors)


class LinearDivergence(_Divergence):
    """Compare hidden states times a head. With a hint, forward computes the gradients and backward only scales them.

    The gradient of sum_i w_i D_i is linear in w. Gradients to the hidden states are stored unweighted, so they serve
    any w. The head's gradient is accumulated with the hint; tokens whose w differs from it add the difference.
    """

    @staticmethod
    def forward(ctx, student, teacher, rows, ids, hint, settings, *tensors):
        _Divergence._begin(ctx, student, teacher, rows, ids, hint, settings, tensors)
        wants = ctx.needs_input_grad[6:9]
        ctx.made = None
        if hint is None or not any(wants):
            values = compare_rows(student, teacher, rows, ids, settings)
        else:
            values, ctx.made = linear_gradients(student, teacher, rows, ids, hint, settings, wants=wants)
        return _Divergence._spread(ctx, values, rows, student.tokens, ids)

    @staticmethod
    @first_derivative
    def backward(ctx, saved, *upstream):
        student, teacher = _Divergence._again(ctx, saved)
        rows, ids, hint = saved[:3]
        wants = ctx.needs_input_grad[6:9]
        gradients = [None, None, None]
        if upstream[0] is not None:
            weights = upstream[0][rows]
            made, ctx.made = ctx.made, None
            if made is None:
                _, made = linear_gradients(student, teacher, rows, None, weights, ctx.settings, wants=wants)
            else:
                # The head's gradient is handed over, not copied; a second backward of a retained graph recomputes it.
                _weigh_again(made, hint, weights, student, teacher, rows, ctx.settings, wants)
            gradients = [None if made.hidden is None else made.hidden * weights.unsqueeze(-1), made.head, made.bias]
        for settings, weights in _Divergence._beside(ctx, rows, upstream):
            _, more = linear_gradients(student, teacher, rows, ids, weights, settings, wants=wants)
            more = [None if more.hidden is None else more.hidden * weights.unsqueeze(-1), more.head, more.bias]
            gradients = [b if a is None else a + b for a, b in zip(gradients, more, strict=True)]
        if gradients[0] is not None:
            gradients[0] = torch.zeros_like(student.hidden).index_copy_(0, rows, gradients[0].to(student.hidden.dtype))
        gradients[1:] = [
            g if g is None else g.to(t.dtype) for g, t in zip(gradients[1:], student.tensors[1:], strict=True)
        ]
        return *(None,) * 6, *gradients, *(None for _ in teacher.tensors)


def _weigh_again(
    made: Gradients,
    hint: torch.Tensor,
    weights: torch.Tensor,
    student: LinearLogits,
    teacher: GivenLogits | LinearLogits,
    rows: torch.Tensor,
    settings: Settings,
    wants: tuple[bool, bool, bool],
) -> None:
    """Convert head and bias gradients from the hint's weights to the actual ones, in place."""
    known = hint != 0
    if not (wants[1] or wants[2]) or not bool(known.any()):
        factor = hint.new_ones(())
    else:
        factor = (weights[known] / hint[known]).median()
    totals = [total for total in made[1:] if total is not None]
    if factor != 1:
        for total in totals:
            total *= factor
    difference = weights - factor * hint
    missed = difference.abs() > 8 * torch.finfo(hint.dtype).eps * (factor * hint).abs()
    if totals and bool(missed.any()):
        _, more = linear_gradients(
            student, teacher, rows[missed], None, difference[missed], settings, wants=(False, *wants[1:])
        )
        for total, part in zip(totals, (part for part in more if part is not None), strict=True):
            total += part
