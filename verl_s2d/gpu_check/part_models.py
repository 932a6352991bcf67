"""Models that parts load: the real weights that were given, or random ones of the size that the device is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.gpu_check.tiny_model import WORDS, Shape, made

# Both have more rows in the embedding than tokens, as Qwen3 has; on a GPU with its numbers, an odd one of tokens.
_GPU = Shape(hidden=512, layers=4, heads=8, head_dim=64, tokens=151_669, vocabulary=151_936, context=4096, spread=0.05)
_CPU = Shape(vocabulary=len(WORDS) + 1)


def student(settings: Settings, *, tied: bool = False) -> Path:
    """The model that is trained; `tied` shares input and output embedding and is for random models only."""
    if settings.model is not None:
        return Path(settings.model)
    return made(settings.scratch, replace(_size(settings), tied=tied))


def teacher(settings: Settings) -> Path:
    """Another model of the same vocabulary, larger where it is random; with real weights the same one."""
    if settings.model is not None:
        return Path(settings.model)
    size = _size(settings)
    return random_teacher(settings, size.vocabulary, size.tokens)


def _size(settings: Settings) -> Shape:
    return _CPU if settings.on_cpu else _GPU


def random_teacher(settings: Settings, vocabulary: int, tokens: int) -> Path:
    """A random model of this vocabulary, whatever the student is."""
    size = _size(settings)
    shape = replace(size, seed=1, layers=size.layers + 1, hidden=2 * size.hidden, vocabulary=vocabulary, tokens=tokens)
    return made(settings.scratch, shape)
