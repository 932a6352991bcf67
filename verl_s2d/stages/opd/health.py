"""Measure the health of stage 2b on its rollouts: travel from the start, and the share of responses with an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import torch
from verl.utils.model import get_generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def parse_rate(
    responses: Sequence[torch.Tensor],
    ends: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
    extractors: Sequence[Callable[[str], str | None]],
) -> float | None:
    """Compute the share of finished responses from which an answer is extracted; None without a finished one.

    No label is read. Responses are untrusted text, which is read as the verifier does when it scores.

    Args:
        responses: (tokens,) ids of each response.
        ends: ids that end a response; one that ends otherwise was cut off.
        extractors: of each response, the function that extracts its answer.
    """
    found = [
        extract(tokenizer.decode(ids.tolist(), skip_special_tokens=True)) is not None
        for ids, extract in zip(responses, extractors, strict=True)
        if len(ids) and int(ids[-1]) in ends
    ]
    return sum(found) / len(found) if found else None


def end_tokens(model: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool) -> frozenset[int]:
    """Collect the ids at which the sampler ends a response: the tokenizer's, and those of the model's files."""
    generation = get_generation_config(model, trust_remote_code=trust_remote_code)
    ends = None if generation is None else generation.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None)
