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
    extract: Callable[[str], str | None],
) -> float | None:
    """Compute the share of finished responses from which an answer is extracted; None without a finished one.

    No label is read. Responses are untrusted text, which `extract` reads as the verifier does when it scores.

    Args:
        responses: (tokens,) ids of each response.
        ends: ids that end a response; one that ends otherwise was cut off.
    """
    finished = [ids for ids in responses if len(ids) and int(ids[-1]) in ends]
    texts = (tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in finished)
    found = [extract(text) is not None for text in texts]
    return sum(found) / len(found) if found else None


def end_tokens(model: str, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool) -> frozenset[int]:
    """Collect the ids at which the sampler ends a response: the tokenizer's, and those of the model's files."""
    generation = get_generation_config(model, trust_remote_code=trust_remote_code)
    ends = None if generation is None else generation.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*ends, tokenizer.eos_token_id) if token is not None)
