"""Command-line options that everything that samples has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verl_s2d.sampling.request import Request, Settings


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Model, sampling settings and engines; derive a module's own options from it."""

    model: str
    """Hugging Face directory or hub id."""
    out: str
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int = 0
    tensor_parallel_size: int = 1
    replicas: int = 1
    device: str = "auto"
    """`cpu`, `cuda` (any accelerator), or `auto` for what this machine has."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More arguments of vLLM's LLM, such as gpu_memory_utilization."""
    weights: str | None = None
    """Digest of the model's content, where it is known already; it is read otherwise."""
    trust_remote_code: bool = False
    chat_template: dict[str, Any] = field(default_factory=dict)
    """verl's data.apply_chat_template_kwargs."""

    def settings(self, n: int, log_probs: int = 0) -> Settings:
        """Collect the sampling settings, `n` samples a prompt, each token with its `log_probs` most likely rivals.

        Raises:
            UserError: settings that vLLM would refuse after the model has been loaded.
        """
        return Settings(n, self.temperature, self.top_p, self.top_k, self.max_tokens, self.seed, log_probs)

    def request(
        self, prompts: Sequence[Sequence[int]], settings: Settings, *, files: Mapping[str, str], extra: int = 0
    ) -> Request:
        """Make the sampling request.

        Args:
            prompts: token ids of each.
            files: name -> file that the prompts were made from.
            extra: prompts, the first ones, that get one sample more.
        """
        return Request(
            self.model,
            prompts,
            settings,
            files=files,
            trust_remote_code=self.trust_remote_code,
            tensor_parallel_size=self.tensor_parallel_size,
            device=self.device,
            engine=self.engine,
            weights=self.weights,
            extra=extra,
        )
