"""List the cases of the Megatron wiring, without importing Megatron; tests/support/ranks/megatron.py runs them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

OBJECTIVES = ("forward_kl", "reverse_kl", "jsd")
TOP_K = "top_k"
"""The reverse KL from what the batch knows of the teacher, in place of one over the whole vocabulary."""


@dataclass(frozen=True)
class Case:
    """A training step on two ranks, or on four where both tensor and pipeline divide the model.

    Attributes:
        data_format: verl's thd (packed) or bshd (padded).
        micro_batch: sequences in one, of the four there are.
        tensor, context: ranks that divide the model, and that divide sequences; what is left divides the batch. Where
            sequences are divided no token attends to another: attention across ranks is Transformer Engine's.
        sequence: Megatron's sequence parallelism; padded micro-batches then each have their own length.
        per_token: Megatron's calculate_per_token_loss, which Megatron-Bridge sets with context parallelism; thd only,
            as verl refuses it with bshd.
        pipeline: ranks that divide the layers.
        tied: output and input embeddings are one, of both models.
        rollouts: verl's loss_agg_mode, over rollouts as OPD has them; None for the warmup's token mean.
    """

    objective: str
    data_format: str
    micro_batch: int
    tensor: int = 2
    context: int = 1
    sequence: bool = False
    per_token: bool = False
    pipeline: int = 1
    tied: bool = False
    rollouts: str | None = None

    @property
    def ranks(self) -> int:
        return max(2, self.tensor * self.context * self.pipeline)

    def __str__(self) -> str:
        parts = [self.objective, self.data_format, f"micro-batches of {self.micro_batch}"]
        sizes = (("tensor", self.tensor), ("context", self.context), ("pipeline", self.pipeline))
        parts += [f"{name} {n}" for name, n in sizes if n > 1]
        parts += ["data 2"] * (self.tensor == self.context == self.pipeline == 1)
        parts += ["sequence-parallel"] * self.sequence + ["per-token"] * self.per_token + ["tied"] * self.tied
        return ", ".join([*parts, *([self.rollouts] if self.rollouts else [])])


_PAIRS = list(product(OBJECTIVES, ("thd", "bshd")))
_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean")
CASES = {
    str(case): case
    for case in (
        *(Case(*pair, micro_batch) for pair in _PAIRS for micro_batch in (4, 2)),
        *(Case(*pair, 1, sequence=True) for pair in _PAIRS),
        *(Case("reverse_kl", layout, 2, rollouts=mode) for layout in ("thd", "bshd") for mode in _MODES),
        *(Case(*pair, 2, tensor=1, context=2) for pair in _PAIRS),
        *(Case(objective, "thd", 2, tensor=1, context=2, per_token=True) for objective in OBJECTIVES),
        *(Case(*pair, 1, tensor=1) for pair in _PAIRS),
        *(Case(*pair, 1, tensor=1, pipeline=2) for pair in _PAIRS),
        Case("forward_kl", "thd", 2, tensor=1, pipeline=2, tied=True),
        Case("reverse_kl", "thd", 4, tensor=1, pipeline=2),
        *(Case("reverse_kl", layout, 2, tensor=1, pipeline=2, rollouts="token-mean") for layout in ("thd", "bshd")),
        *(Case("reverse_kl", "thd", 1, pipeline=2, sequence=s, rollouts="token-mean") for s in (True, False)),
        Case("forward_kl", "thd", 1, pipeline=2, sequence=True, tied=True),
        *(Case(TOP_K, layout, 2) for layout in ("thd", "bshd")),
        Case(TOP_K, "thd", 1, sequence=True),
        Case(TOP_K, "thd", 2, tensor=1, context=2),
        Case(TOP_K, "bshd", 1, tensor=1, pipeline=2),
        Case(TOP_K, "thd", 2, rollouts="token-mean"),
    )
}
