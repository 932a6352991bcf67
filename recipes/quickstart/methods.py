"""Rows of signals with other settings than `verl-s2d run --rows` knows: `rows: ["exopd-1.5=methods.py:exopd_far"]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_s2d.recipe.method_rows import bridge_with

if TYPE_CHECKING:
    from verl_s2d.stages.builder import Builder, Model


def exopd_one(b: Builder) -> Model:
    """Extrapolate nothing: the sampled signal of the teacher itself (ExOPD at lambda 1)."""
    return bridge_with(b, {"type": "exopd", "lambda": 1.0}, of="exopd-1.0")


def exopd_far(b: Builder) -> Model:
    """Extrapolate half as far again beyond the teacher's gain (ExOPD at lambda 1.5)."""
    return bridge_with(b, {"type": "exopd", "lambda": 1.5}, of="exopd-1.5")
