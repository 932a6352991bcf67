"""List the parts of gpu-check, cheapest first, each with its time limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verl_s2d.errors import UserError


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: name in --parts and the report, and of the module in verl_s2d.gpu_check.parts.
        about: what the part checks.
        seconds: time limit of the process, several times the expected time.
    """

    name: str
    about: str
    seconds: int

    @property
    def module(self) -> str:
        """Name the module that has the part's `run(settings, record)`."""
        return f"verl_s2d.gpu_check.parts.{self.name}"


PARTS = (
    Part("machine", "GPU, driver, CPUs, memory, disk, compiler, versions, flash-attn", 120),
    Part("registration", "verl's platform and our registration, also in a process that sees no GPU", 180),
    Part("fork", "vLLM's processes start in a way that CUDA survives", 180),
    Part("gemms", "matrix products of the divergence: error, TFLOP/s, what aligned columns give", 180),
    Part("divergence", "the exact objectives: error, time and memory over the bare products", 420),
    Part("engines", "a step of 2a and of 2b in verl's engine against plain transformers", 600),
    Part("vllm", "sampling: start, tokens/s, vocabulary, stop ids, seeds, what a kill leaves behind", 420),
    Part("stages", "every kind of stage through `verl-s2d run`, a kill and a resume, the self-test", 1500),
    Part("summary", "a line a part, and the hours of a recipe at this machine's speed", 180),
)


def choose(names: Sequence[str] | None) -> list[Part]:
    """Return the named parts in the order of PARTS, or all parts when None.

    Raises:
        UserError: a name is unknown.
    """
    known = [part.name for part in PARTS]
    for name in names or ():
        if name not in known:
            raise UserError("Unknown part.", key="--parts", value=name, remedy=f"Use some of {', '.join(known)}.")
    return [part for part in PARTS if names is None or part.name in names]
