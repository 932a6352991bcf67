"""vLLM's offline engine with one model; on a CPU it runs in the calling process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from verl_s2d.data.weights import check_weights
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import cpu_environment, prepare_for_vllm
from verl_s2d.sampling.likely_tokens import LikelyTokens, of_vllm
from verl_s2d.sampling.prompts import prompt_seed, unreadable
from verl_s2d.sampling.request import Settings

DEVICES = ("auto", "cpu", "cuda")


class Completion(NamedTuple):
    """One sample.

    Attributes:
        token_ids: generated ids, the end-of-sequence token included when it was generated.
        finish_reason: "stop", or "length" when max_tokens ran out first.
        likely: the most likely tokens at each position, where they were asked for.
        prompt_log_probs: log-probs of the prompt's tokens but the first, where they were asked for: at temperature 1.
    """

    token_ids: list[int]
    finish_reason: str
    likely: LikelyTokens | None = None
    prompt_log_probs: list[float] | None = None


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
    """A loaded model. Prompts are handed in at any time; `step` works on all that are there.

    Args:
        model: Hugging Face directory or hub id, with its tokenizer.
        context: longest prompt plus completion that will be asked for, in tokens.
        device: `cpu`, `cuda` (any accelerator), or `auto` for what there is.
        engine: more arguments of vLLM's LLM; of those below it may replace dtype and enforce_eager.
        log_probs: largest number of likely tokens that will be asked for.

    Raises:
        UserError: a device that is unknown or not here, or what `check_model` finds.
    """

    def __init__(
        self,
        model: str,
        *,
        context: int,
        tensor_parallel_size: int = 1,
        trust_remote_code: bool = False,
        seed: int = 0,
        device: str = "auto",
        engine: Mapping[str, Any] | None = None,
        log_probs: int = 0,
    ):
        prepare_for_vllm()
        cpu = on_cpu(device)
        if cpu:
            _prepare_cpu()
        else:
            _require_accelerator(device)
        vocabulary = check_model(model, context=context, trust_remote_code=trust_remote_code)
        if log_probs > vocabulary:
            raise UserError(
                f"The model has {vocabulary} tokens.", key="log_probs", value=log_probs, remedy="Ask for fewer."
            )
        from vllm import LLM

        known = {"max_logprobs": log_probs, "logprobs_mode": "raw_logprobs"} if log_probs else {}
        self._llm = LLM(
            model=model,
            max_model_len=context,
            seed=seed,
            tensor_parallel_size=tensor_parallel_size,
            trust_remote_code=trust_remote_code,
            # A hub repository that could not be looked into must not be unpickled either.
            load_format="safetensors",
            worker_extension_cls=f"{__name__}.{VocabularyGuard.__name__}",
            # For a prompt read in several parts vLLM sets a seeded generator back, which one on the CPU cannot be.
            enable_chunked_prefill=False if cpu else None,
            **{"dtype": "float32" if cpu else "auto", "enforce_eager": cpu, **(engine or {}), **known},
        )
        # The number of tokens is smaller where ids have holes.
        end = max(self._llm.get_tokenizer().get_vocab().values()) + 1
        if vocabulary > end:
            self._llm.collective_rpc("ban_ids_from", args=(end,))

    def submit(self, prompts: Sequence[Sequence[int]], settings: Settings) -> None:
        """More prompts to sample from.

        A prompt's random stream follows from the seed and its own tokens, not from the other prompts. Its logits do
        not either on a CPU in fp32; in bf16 on a GPU they are rounded otherwise in another batch.
        """
        from vllm import SamplingParams

        # Greedy completions of a prompt are all alike, and vLLM refuses to make more than one.
        self._copies = 1 if settings.temperature > 0 else settings.n
        self._log_probs = settings.log_probs
        likely = {"logprobs": settings.log_probs, "flat_logprobs": True} if settings.log_probs else {}
        likely |= {"prompt_logprobs": 0} if settings.prompt_log_probs else {}
        parameters = [
            SamplingParams(
                n=settings.n // self._copies,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                max_tokens=settings.max_tokens,
                seed=prompt_seed(settings.seed, prompt),
                detokenize=False,
                **likely,
            )
            for prompt in prompts
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        self._llm.enqueue(requests, parameters, use_tqdm=False)

    def step(self) -> list[tuple[list[int], list[Completion]]]:
        """One pass of the engine: the prompts that it finished, with all their completions."""
        return [
            (
                list(output.prompt_token_ids),
                [self._completion(o, _of_prompt(output)) for o in output.outputs] * self._copies,
            )
            for output in self._llm.llm_engine.step()
            if output.finished
        ]

    def _completion(self, output: Any, prompt_log_probs: list[float] | None) -> Completion:
        likely = of_vllm(output.logprobs, self._log_probs) if self._log_probs else None
        return Completion(list(output.token_ids), str(output.finish_reason), likely, prompt_log_probs)


def _of_prompt(output: Any) -> list[float] | None:
    """Read the log-probs of a prompt's tokens; vLLM has none for the first."""
    if output.prompt_logprobs is None:
        return None
    ids = list(output.prompt_token_ids)
    return [output.prompt_logprobs[place][ids[place]].logprob for place in range(1, len(ids))]


def check_model(model: str, *, context: int, trust_remote_code: bool = False) -> int:
    """Rows of the model's embedding.

    Raises:
        UserError: the model cannot be read, or its context is shorter than `context`.
    """
    from transformers import AutoConfig

    check_weights(model, "model")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
    except (OSError, ValueError) as error:
        raise unreadable(model, "model", error) from error
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise UserError(
            f"The model's context is {longest} tokens.",
            key="prompt + max_tokens",
            value=context,
            remedy="Ask for shorter completions, or use a model with a longer context.",
        )
    return config.vocab_size


def on_cpu(device: str = "auto") -> bool:
    """Tell whether engines work on the CPU: where `device` is `cpu`, or `auto` on a machine without an accelerator.

    Raises:
        UserError: another device.
    """
    if device not in DEVICES:
        raise UserError("Unknown device.", key="device", value=device, remedy=f"One of {', '.join(DEVICES)}.")
    return device == "cpu" or (device == "auto" and not _accelerator())


def _accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def _require_accelerator(device: str) -> None:
    if not _accelerator():
        raise UserError(
            "torch sees no accelerator where the engine is to work.",
            key="device",
            value=device,
            remedy="Look at nvidia-smi and at torch's build there (`python -c 'import torch; "
            "print(torch.accelerator.is_available())'` says True on a node with GPUs), or choose the device cpu.",
        )


def _prepare_cpu() -> None:
    """Set what vLLM reads when it is imported on a CPU."""
    # The engine in this process: its own would repeat some ten seconds of imports.
    for name, value in {**cpu_environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
        os.environ.setdefault(name, value)
