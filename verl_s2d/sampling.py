"""Completions of token-id prompts from a Hugging Face model, through vLLM's offline engine.

Used where a whole data set is sampled from a model that does not change: the teacher's rollouts and the evaluation.
Needs neither verl nor Ray, and on a CPU runs in the calling process.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from verl_s2d.data.weights import check_weights
from verl_s2d.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Completion(NamedTuple):
    """One sample.

    Attributes:
        token_ids: generated ids, the end-of-sequence token included when it was generated.
        finish_reason: "stop", or "length" when max_tokens ran out first.
    """

    token_ids: list[int]
    finish_reason: str


class VocabularyGuard:
    """vLLM worker extension: ids without a token are never sampled.

    Embeddings are often padded beyond the tokenizer. verl masks these rows in its rollout workers in the same way.
    """

    def ban_ids_from(self, size: int) -> None:
        """Mask logits of ids >= `size`."""
        model = self.model_runner.model
        compute_logits = model.compute_logits

        def masked(*args: Any, **kwargs: Any) -> Any:
            logits = compute_logits(*args, **kwargs)
            if logits is not None:
                logits[..., size:] = float("-inf")
            return logits

        model.compute_logits = masked


class Sampler:
    """A loaded model.

    Args:
        model: Hugging Face directory or hub id, with its tokenizer.
        context: longest prompt plus completion that will be asked for, in tokens.

    Raises:
        UserError: the model cannot be read, or its context is shorter than `context`.
    """

    def __init__(
        self, model: str, *, context: int, tensor_parallel_size: int = 1, trust_remote_code: bool = False, seed: int = 0
    ):
        check_weights(model, "model")
        on_cpu = _prepare_environment()
        limits = _model_limits(model, trust_remote_code)
        if limits.context is not None and context > limits.context:
            raise UserError(
                f"The model's context is {limits.context} tokens.",
                key="prompt + max_tokens",
                value=context,
                remedy="Ask for shorter completions, or use a model with a longer context.",
            )
        from vllm import LLM

        self._llm = LLM(
            model=model,
            max_model_len=context,
            seed=seed,
            tensor_parallel_size=tensor_parallel_size,
            trust_remote_code=trust_remote_code,
            # A hub repository that could not be looked into must not be unpickled either.
            load_format="safetensors",
            worker_extension_cls=f"{__name__}.{VocabularyGuard.__name__}",
            dtype="float32" if on_cpu else "auto",
            enforce_eager=on_cpu,
            # For a prompt read in several parts vLLM sets a seeded generator back, which one on the CPU cannot be.
            enable_chunked_prefill=False if on_cpu else None,
        )
        self.tokenizer = self._llm.get_tokenizer()
        if limits.vocabulary > len(self.tokenizer):
            self._llm.collective_rpc("ban_ids_from", args=(len(self.tokenizer),))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        temperature: float,
        top_p: float,
        top_k: int,
        max_tokens: int,
        seed: int,
    ) -> list[list[Completion]]:
        """n completions a prompt, in the order of `prompts`.

        A prompt's random stream follows from `seed` and its own tokens: it does not depend on the other prompts.
        """
        from vllm import SamplingParams

        # Greedy completions of a prompt are all alike, and vLLM refuses to make more than one.
        distinct = n if temperature > 0 else 1
        parameters = [
            SamplingParams(
                n=distinct,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_tokens=max_tokens,
                seed=prompt_seed(seed, prompt),
                detokenize=False,
            )
            for prompt in prompts
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(requests, parameters, use_tqdm=sys.stderr.isatty())
        return [
            [Completion(list(o.token_ids), str(o.finish_reason)) for o in output.outputs] * (n // distinct)
            for output in outputs
        ]


def sample(
    model: str,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int,
    seed: int,
    tensor_parallel_size: int = 1,
    trust_remote_code: bool = False,
) -> list[list[Completion]]:
    """Load `model`, sample n completions of every prompt, and forget it. Raises what `Sampler` raises."""
    sampler = Sampler(
        model,
        context=longest(prompts) + max_tokens,
        tensor_parallel_size=tensor_parallel_size,
        trust_remote_code=trust_remote_code,
        seed=seed,
    )
    return sampler.sample(
        prompts, n=n, temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens, seed=seed
    )


def check_settings(*, n: int, temperature: float, top_p: float, top_k: int, max_tokens: int) -> None:
    """Raises UserError for what vLLM would refuse after the model has been loaded."""
    for key, value, valid, remedy in (
        ("n", n, n >= 1, "At least 1."),
        ("temperature", temperature, temperature >= 0, "0 (greedy) or more."),
        ("top_p", top_p, 0 < top_p <= 1, "Above 0, at most 1."),
        ("top_k", top_k, top_k == -1 or top_k >= 1, "-1 (all) or at least 1."),
        ("max_tokens", max_tokens, max_tokens >= 1, "At least 1."),
    ):
        if not valid:
            raise UserError("The sampling setting is out of range.", key=key, value=value, remedy=remedy)


def longest(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens in the longest prompt."""
    return max(len(prompt) for prompt in prompts)


def prompt_seed(seed: int, prompt: Sequence[int]) -> int:
    """A 31-bit seed for one prompt. vLLM adds 0, 1, ... to it for the samples of the prompt."""
    digest = hashlib.sha256(f"{seed}:{','.join(map(str, prompt))}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, as verl loads it.

    Raises:
        UserError: there is none, or it has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unreadable(model, "tokenizer", error) from error
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


class _Limits(NamedTuple):
    context: int | None
    vocabulary: int


def _model_limits(model: str, trust_remote_code: bool) -> _Limits:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
    except (OSError, ValueError) as error:
        raise _unreadable(model, "model", error) from error
    return _Limits(getattr(config, "max_position_embeddings", None), config.vocab_size)


def _unreadable(model: str, what: str, error: Exception) -> UserError:
    return UserError(
        f"The {what} cannot be read: {str(error).splitlines()[0]}",
        key="model",
        value=model,
        remedy="Give a Hugging Face directory or hub id.",
    )


def _prepare_environment() -> bool:
    """Set what vLLM reads when it is imported. Returns whether this machine has no accelerator."""
    import torch

    if torch.accelerator.is_available():
        return False
    from verl_s2d.platforms.environment import cpu_environment

    # The engine in this process: its own would repeat some ten seconds of imports.
    for name, value in {**cpu_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
        os.environ.setdefault(name, value)
    return True
