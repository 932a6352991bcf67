"""Define the top-k signal: a divergence from what is known of the teacher, its k most likely ids and their mass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from verl_s2d.signals.signal import Ask, Signal

STORED = (Ask.TOP_K,)
"""Answers that stage 2a finds in its cache of rollouts."""


class TopK(Signal):
    """The KL of student and teacher after merging all ids but the teacher's k most likely ones into one, as the loss.

    The tail bucket makes it a proper divergence, equal to the exact one where k is the vocabulary; the sum over the k
    ids alone is none (objectives.top_k; Many Faces of OPD, arXiv 2605.11182). For teachers whose logits are out of
    reach: on servers in stage 2b, and in stage 2a in the cache that its rollouts store when they are sampled.

    Attributes:
        k: number of the teacher's ids.
        objective: forward_kl, KL(pi_T || pi_S), or reverse_kl.
    """

    asks: ClassVar[Mapping[str, Ask]] = {"teacher": Ask.TOP_K}
    keep_tokens: ClassVar[None] = None
    type: str = "top_k"
    k: Annotated[int, Field(ge=1)] = 64
    objective: Literal["forward_kl", "reverse_kl"] = "forward_kl"
