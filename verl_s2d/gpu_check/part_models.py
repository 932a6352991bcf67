"""Provide the models that parts load: given real weights, or random ones sized for the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.gpu_check.tiny_model import WORDS, Shape, made

# Both embeddings have more rows than tokens, like Qwen3's. The GPU sizes are Qwen3's own, with an odd number of tokens.
_GPU = Shape(hidden=512, layers=4, heads=8, head_dim=64, tokens=151_669, vocabulary=151_936, context=4096, spread=0.05)
_CPU = Shape(vocabulary=len(WORDS) + 1)


def student(settings: Settings, *, tied: bool = False) -> Path:
    """Return the trained model; `tied` shares input and output embedding, for random models only."""
    if settings.model is not None:
        return Path(settings.model)
    return made(settings.scratch, replace(_size(settings), tied=tied))


def teacher(settings: Settings) -> Path:
    """Return the teacher: a larger random model of the same vocabulary, or with real weights the student itself."""
    if settings.model is not None:
        return Path(settings.model)
    size = _size(settings)
    return random_teacher(settings, size.vocabulary, size.tokens)


def _size(settings: Settings) -> Shape:
    return _CPU if settings.on_cpu else _GPU


def random_teacher(settings: Settings, vocabulary: int, tokens: int) -> Path:
    """Return a random model of this vocabulary, also with real weights for the student."""
    size = _size(settings)
    shape = replace(size, seed=1, layers=size.layers + 1, hidden=2 * size.hidden, vocabulary=vocabulary, tokens=tokens)
    return made(settings.scratch, shape)
