"""Problems -> token ids, as verl's agent loop makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from verl_s2d.errors import UserError
from verl_s2d.platforms.template_date import freeze_template_date

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, as verl loads it.

    Raises:
        UserError: there is none, or it has no chat template.
    """
    from transformers import AutoTokenizer

    freeze_template_date()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise unreadable(model, "tokenizer", error) from error
    if not tokenizer.chat_template:
        raise UserError(
            "The tokenizer has no chat template, so that prompts cannot be rendered.",
            key="model",
            value=model,
            remedy="Add a chat_template to the model's tokenizer.",
        )
    return tokenizer


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
) -> list[int]:
    """Prompt ids as verl's agent loop makes them; `options` is verl's data.apply_chat_template_kwargs."""
    rendered = tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=True, return_dict=False, **(options or {})
    )
    return list(rendered)


def prompt_seed(seed: int, prompt: Sequence[int]) -> int:
    """A 31-bit seed for one prompt. vLLM adds 0, 1, ... to it for the samples of the prompt."""
    digest = hashlib.sha256(f"{seed}:{','.join(map(str, prompt))}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def unreadable(model: str, what: str, error: Exception) -> UserError:
    """The error for a model of which `what` cannot be read."""
    return UserError(
        f"The {what} cannot be read: {str(error).splitlines()[0]}",
        key="model",
        value=model,
        remedy="Give a Hugging Face directory or hub id.",
    )
