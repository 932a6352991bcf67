"""Run one sampler in this process: write its samples to a file, then wait to be killed.

python -P -m verl_s2d.gpu_check.sampling_process SETTINGS MODEL OUT
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_s2d.data.files import write_json
from verl_s2d.gpu_check import part_settings as settings_file
from verl_s2d.gpu_check.part_settings import Settings

_WAIT_SECONDS = 600


def main(settings_path: str, model: str, out: str) -> None:
    """Load, sample three times, write, wait."""
    from verl_s2d.sampling.shard_worker import kill_children_at_death

    kill_children_at_death()
    settings = settings_file.read(Path(settings_path))
    answer = sample(settings, model)
    write_json(answer, out)
    time.sleep(_WAIT_SECONDS)


def sample(settings: Settings, model: str) -> dict[str, Any]:
    """Sample the same prompts twice, and half of them once more, with the same seeds."""
    from transformers import AutoTokenizer

    from verl_s2d.sampling.engine import Sampler
    from verl_s2d.sampling.request import Settings as Sampling

    prompts, samples, tokens = (8, 2, 12) if settings.on_cpu else (64, 8, 256)
    began = time.monotonic()
    engine = {} if settings.on_cpu else {"gpu_memory_utilization": 0.5}
    sampler = Sampler(model, context=2 * tokens + 32, device=settings.device, engine=engine)
    ready = time.monotonic() - began
    tokenizer = AutoTokenizer.from_pretrained(model)
    asked = [[3 + (7 * i + 3 * k) % 20 for k in range(4 + i % 5)] + [3 + i // 20] * (1 + i % 7) for i in range(prompts)]
    sampling = Sampling(n=samples, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=tokens, seed=1)
    first, seconds = _sample(sampler, asked, sampling)
    again, _ = _sample(sampler, asked, sampling)
    fewer, _ = _sample(sampler, asked[: prompts // 2], sampling)
    completions = [completion for found in first.values() for completion in found]
    return {
        "ready": ready,
        "seconds": seconds,
        "tokens": sum(len(ids) for ids, _ in completions),
        "completions": completions,
        "expected": len({tuple(p) for p in asked}) * samples,
        "vocabulary": max(tokenizer.get_vocab().values()) + 1,
        "stop_ids": _stop_ids(model, tokenizer),
        "max_tokens": tokens,
        "equal_again": _equal(first, again),
        "equal_with_fewer": _equal({prompt: first[prompt] for prompt in fewer}, fewer),
    }


def _sample(sampler: Any, prompts: Sequence[list[int]], sampling: Any) -> tuple[dict[str, list], float]:
    """Sample each distinct prompt; returns samples by prompt, and seconds."""
    found: dict[str, list] = {}
    unique = [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts))]
    began = time.monotonic()
    sampler.submit(unique, sampling)
    # no limit: this process is killed by the part that started it
    while len(found) < len(unique):
        for prompt, completions in sampler.step():
            found[str(prompt)] = [[completion.token_ids, completion.finish_reason] for completion in completions]
    return found, time.monotonic() - began


def _equal(one: dict[str, list], other: dict[str, list]) -> float:
    """Compute the fraction of samples that are equal token by token."""
    pairs = [pair for prompt, found in one.items() for pair in zip(found, other[prompt], strict=True)]
    return sum(a[0] == b[0] for a, b in pairs) / len(pairs)


def _stop_ids(model: str, tokenizer: Any) -> list[int]:
    """List the ids that end a sequence, from the generation configuration and the tokenizer."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        ids = None
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return sorted({*listed, tokenizer.eos_token_id})


if __name__ == "__main__":
    main(*sys.argv[1:])
