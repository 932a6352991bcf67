"""Define the section `cluster:` of a recipe: machines, and how long a run waits for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from verl_s2d.recipe.stage_settings import NonNegative, Positive
from verl_s2d.validation import Section

TFLOPS = {
    "A10": 125,
    "A100": 312,
    "B200": 2250,
    "H100": 989,
    "H200": 989,
    "L4": 121,
    "L40S": 362,
    "RTX 3090": 71,
    "RTX 4090": 165,
}
"""Dense bf16 peak of a GPU with sums in fp32, from NVIDIA's data sheets and white papers (SXM where there are two)."""
DEFAULT_GPU = "H100"


class Cluster(Section):
    """Machines and time limits. None of it changes what is built, so none of it rebuilds anything."""

    nodes: Positive = 1
    """Machines of a stage."""
    gpus_per_node: Positive = 1
    """GPUs of each; on a CPU, processes."""
    gpu_memory_gb: NonNegative = 80.0
    """Memory of one GPU in GiB, which vendors write as GB; `plan` compares its estimates with it."""
    gpu: Literal["A10", "A100", "B200", "H100", "H200", "L4", "L40S", "RTX 3090", "RTX 4090"] | None = None
    """Model of the GPUs, whose peak the hours of `plan` rest on. Null: an H100's is assumed, and `plan` says so."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where this host has an accelerator, otherwise cpu."""
    warm_start: Literal["auto"] | bool = "auto"
    """Fork stages from a process that has imported verl already, instead of importing it once a stage."""
    side_by_side: Positive = 1
    """Stages that run at a time, where none needs another's result. More than one only on device cpu with a Ray head of
    the run's own: each then has a head, and the memory of a stage."""
    stall_minutes: NonNegative | None = None
    """Stop a stage that writes nothing, neither log nor files, for this long before its first step; a stage that counts
    no steps, at any time. Null: 60 on cuda, 10 on cpu."""
    step_minutes: NonNegative | None = None
    """Stop a stage that finishes no step for this long, the first step counted from the stage's start, and for ten
    times its longest step. Null: 120 on cuda, 30 on cpu."""
    grace_seconds: NonNegative | None = None
    """Seconds after SIGTERM that a training stage has to end its step and save before it is stopped. Choose two steps,
    and less than the notice of the scheduler. Null: 1800 on cuda, 25 on cpu."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Number of restarts of a failed stage, each from its last checkpoint."""
    wait_minutes: NonNegative = 30.0
    """Longest wait, before each attempt, until the cluster of RAY_ADDRESS has its nodes and they are free."""

    def on(self, device: str) -> Cluster:
        """Fill in the times that depend on the device: steps take seconds on a CPU and minutes on GPUs."""
        stall, step, grace = (10.0, 30.0, 25.0) if device == "cpu" else (60.0, 120.0, 1800.0)
        return self.model_copy(
            update={
                "stall_minutes": stall if self.stall_minutes is None else self.stall_minutes,
                "step_minutes": step if self.step_minutes is None else self.step_minutes,
                "grace_seconds": grace if self.grace_seconds is None else self.grace_seconds,
            }
        )
