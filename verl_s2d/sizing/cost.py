"""Bound a stage's cost in tokens, verifier calls, updates and FLOPs: every response has its maximum length.

A token's forward pass takes 2 N FLOPs for the N parameters of matrices (the input embedding is a look-up), plus 2 L A S
for attention to S/2 earlier tokens on average (scores and values, 2 FLOPs each; A is the width of all queries). Forward
and backward pass together take three times that (Kaplan et al. 2020; Chowdhery et al. 2022, appendix B). Recomputation
by checkpointing is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from verl_s2d.sizing.shapes import ModelShape
from verl_s2d.verl_settings.stage_sizes import Training
from verl_s2d.workflow.graph import Node

PASS_MFU, SAMPLING_MFU = 0.35, 0.05
"""Assumptions, not measurements: the MFU of training and scoring, the MFU of sampling."""


@dataclass(frozen=True)
class Cost:
    """Upper bounds on one stage's cost; None if still unknown.

    Attributes:
        sampled_tokens, teacher_scored_tokens: response tokens.
        pass_flops: FLOPs of training and scoring.
        sampling_flops: FLOPs of sampling.
    """

    sampled_tokens: int | None = 0
    teacher_scored_tokens: int | None = 0
    verifier_calls: int | None = 0
    updates: int | None = 0
    pass_flops: float | None = 0
    sampling_flops: float | None = 0

    def gpu_hours(self, tflops: float | None) -> float | None:
        """Convert FLOPs to hours with the assumptions above; None if they are unknown, or without a GPU.

        Args:
            tflops: dense peak of a GPU; None on a CPU.
        """
        if self.pass_flops is None or self.sampling_flops is None or tflops is None:
            return None
        return (self.pass_flops / PASS_MFU + self.sampling_flops / SAMPLING_MFU) / (tflops * 1e12) / 3600


def forward_flops(shape: ModelShape, longest: int) -> float:
    """Compute the FLOPs of a token's forward pass in sequences of `longest` tokens."""
    matrices = shape.layers * shape.block_parameters + shape.embedding_parameters
    return 2 * matrices + 2 * shape.layers * shape.queries * longest


def training_cost(
    node: Node,
    training: Training,
    shape: ModelShape | None,
    frozen: Sequence[ModelShape | None],
    *,
    prompt: int,
    response: float,
) -> Cost:
    """Bound the cost of a training stage; unknown while its steps depend on another row's result.

    Args:
        prompt: maximal tokens of a prompt.
        response: maximal tokens of a response, averaged over the steps.
    """
    steps = node.settings["steps"]
    if steps is None:
        return Cost(**dict.fromkeys((f.name for f in fields(Cost)), None))
    sequences = steps * training.batch
    tokens, whole = round(sequences * response), sequences * (prompt + response)
    # A loss without frozen models learns from what its data store of a teacher.
    sampled, distilled = training.rollout is not None, bool(frozen) or training.loss != "policy"
    known = shape is not None and None not in frozen
    passes = sampling = None
    if known:
        own = forward_flops(shape, training.longest)
        scored = own if training.scoring is not None else 0
        # A reference policy has the shape of the policy.
        asked = frozen or ([shape] if training.reference_scoring is not None else [])
        forward = sum(forward_flops(model, training.longest) for model in asked)
        # TIP compares every token of a mini-batch before its update.
        measuring = own + forward if (node.settings.get("signal") or {}).get("keep_tokens") is not None else 0
        passes = whole * (3 * own * training.epochs + scored + forward + measuring)
        sampling = whole * own if sampled else 0
    return Cost(
        sampled_tokens=tokens if sampled else 0,
        teacher_scored_tokens=tokens if distilled else 0,
        verifier_calls=sequences if "verifier_calls" in node.stage.consumes else 0,
        updates=round(sequences / training.mini_batch * training.epochs),
        pass_flops=passes,
        sampling_flops=sampling,
    )


def sampling_cost(sequences: int | None, shape: ModelShape | None, *, prompt: int, response: int, scored: bool) -> Cost:
    """Bound the cost of a stage that only samples; `scored`: a verifier scores every sample."""
    if sequences is None:
        return Cost(sampled_tokens=None, verifier_calls=None if scored else 0, sampling_flops=None)
    flops = None if shape is None else sequences * (prompt + response) * forward_flops(shape, prompt + response)
    return Cost(sampled_tokens=sequences * response, verifier_calls=sequences if scored else 0, sampling_flops=flops)


def total(costs: list[Cost], tflops: float | None) -> Mapping[str, Any]:
    """Sum the costs of stages, and their hours on GPUs of this peak; a figure that one stage lacks is None."""

    def add(values: list[float | None]) -> float | None:
        return None if None in values else sum(values)

    names = ("sampled_tokens", "teacher_scored_tokens", "verifier_calls", "updates", "pass_flops", "sampling_flops")
    figures = {name: add([getattr(cost, name) for cost in costs]) for name in names}
    return figures | {"gpu_hours": add([cost.gpu_hours(tflops) for cost in costs])}
