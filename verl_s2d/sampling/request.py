"""A sampling request. Equal requests give equal samples, however many engines and restarts it takes.

That is exact on a CPU, and up to rounding on a GPU, where batches of another size round otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from verl_s2d.data.content import directory_digest, file_digest
from verl_s2d.errors import UserError
from verl_s2d.recipe.engine_settings import check_engine, split_engine

_LATER = ("log_probs", "prompt_log_probs")
"""Settings that came later."""


@dataclass(frozen=True)
class Settings:
    """Sampling settings of every prompt.

    Attributes:
        n: samples a prompt.
        temperature, top_p, top_k, max_tokens: as vLLM takes them; 0 is greedy, top_k -1 is all.
        log_probs: most likely tokens to keep, with their log-probs, beside each sampled one.
        prompt_log_probs: keep the log-prob of each of the prompt's tokens but the first, given those before it.

    Raises:
        UserError: what vLLM would refuse after the model has been loaded.
    """

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    log_probs: int = 0
    prompt_log_probs: bool = False

    def __post_init__(self) -> None:
        for key, valid, remedy in (
            ("n", self.n >= 1, "At least 1."),
            ("temperature", self.temperature >= 0, "0 (greedy) or more."),
            ("top_p", 0 < self.top_p <= 1, "Above 0, at most 1."),
            ("top_k", self.top_k == -1 or self.top_k >= 1, "-1 (all) or at least 1."),
            ("max_tokens", self.max_tokens >= 1, "At least 1."),
            ("log_probs", self.log_probs >= 0, "0 (none) or more."),
        ):
            if not valid:
                raise UserError(
                    "The sampling setting is out of range.", key=key, value=getattr(self, key), remedy=remedy
                )

    def written(self) -> dict[str, Any]:
        """Write the settings as JSON; a key that came later is there with another value than its default only."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value}


@dataclass(frozen=True)
class Request:
    """A model, and prompts in their order.

    Attributes:
        model: Hugging Face directory or hub id.
        prompts: token ids of each.
        files: name -> file that the prompts were made from.
        weights: digest of the model's content, where it is known already.
        extra: prompts, the first ones, that get one sample more than the others.
        tensor_parallel_size: GPUs that one engine divides the model among; no part of the result.
        device: `cpu`, `cuda` (any accelerator), or `auto` for what there is.
        engine: more arguments of vLLM's LLM, as `engine_settings` allows them.

    Raises:
        UserError: an argument in `engine` that cannot be given.
    """

    model: str
    prompts: Sequence[Sequence[int]]
    settings: Settings
    files: Mapping[str, str]
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    device: str = "auto"
    engine: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    extra: int = 0

    def __post_init__(self) -> None:
        check_engine(self.engine, "engine")

    def samples_of(self, place: int) -> int:
        """Samples of the prompt at `place`."""
        return self.settings.n + (place < self.extra)

    @property
    def context(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return max(map(len, self.prompts)) + self.settings.max_tokens

    @property
    def sampler(self) -> dict[str, Any]:
        """Arguments of `engine.Sampler`."""
        return {
            "model": self.model,
            "context": self.context,
            "tensor_parallel_size": self.tensor_parallel_size,
            "trust_remote_code": self.trust_remote_code,
            "seed": self.settings.seed,
            "device": self.device,
            "engine": dict(self.engine),
            **({"log_probs": self.settings.log_probs} if self.settings.log_probs else {}),
        }

    @property
    def sequences_at_once(self) -> int:
        """Sequences that an engine was told to work on at a time; 0 where vLLM chooses."""
        return self.engine.get("max_num_seqs") or 0

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Describe everything that decides the samples of all prompts, as JSON. A model's directory counts by its
        content: it may have been made anew under the same name."""
        directory = Path(self.model)
        return {
            "model": self.model,
            "weights": self.weights or (directory_digest(directory) if directory.is_dir() else None),
            "trust_remote_code": self.trust_remote_code,
            "settings": self.settings.written(),
            "engine": split_engine(self.engine)[0],
            "files": {name: file_digest(Path(path)) for name, path in self.files.items()},
        }

    def identity_of(self, first: int, last: int) -> dict[str, Any]:
        """Name what decides the samples of prompts `first` up to `last`, each of which has equally many.

        Token ids are part of it, because a tokenizer or a chat template may have changed.
        """
        ids = hashlib.sha256(repr([list(prompt) for prompt in self.prompts[first:last]]).encode()).hexdigest()
        settings = {**self.identity["settings"], "n": self.samples_of(first)}
        return {**self.identity, "settings": settings, "prompts": [first, last, ids]}
