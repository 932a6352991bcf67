"""Provide logits chunk by chunk: from a tensor, from hidden states and a head, or as a weighted sum of these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from itertools import islice

import torch

from verl_s2d.objectives.gemm import add_logits_of, logits_of, wide


@dataclass(frozen=True)
class LinearLogits:
    """Logits softcap(hidden @ head.T + bias) / temperature, computed chunk by chunk.

    Attributes:
        hidden: (tokens, H).
        head: (V, H), the output embedding's weight.
        bias: (V,), or None.
        softcap: z -> softcap tanh(z / softcap) after the bias, as in Gemma; None for none.
        temperature: divides the logits.

    Raises:
        ValueError: other shapes, or softcap or temperature is not positive.
    """

    hidden: torch.Tensor
    head: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.hidden.dim() != 2 or self.head.dim() != 2:
            shapes = f"hidden states of shape {tuple(self.hidden.shape)} and a head of shape {tuple(self.head.shape)}"
            raise ValueError(f"{shapes} are not (tokens, H) and (V, H); flatten the former with .flatten(0, -2)")
        if self.hidden.shape[-1] != self.head.shape[-1]:
            raise ValueError(f"hidden states of width {self.hidden.shape[-1]}, head of width {self.head.shape[-1]}")
        if self.bias is not None and self.bias.shape != self.head.shape[:1]:
            raise ValueError(f"bias of shape {tuple(self.bias.shape)}, head of shape {tuple(self.head.shape)}")
        if (self.softcap is not None and self.softcap <= 0) or self.temperature <= 0:
            raise ValueError(f"softcap {self.softcap} and temperature {self.temperature} must be positive")

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0]

    @property
    def vocab_size(self) -> int:
        return self.head.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return wide(self.hidden.dtype)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return self.hidden, self.head, self.bias

    @property
    def masks_ids(self) -> bool:
        """Tell whether a bias of -inf excludes an id."""
        return self.bias is not None and not bool((self.bias > float("-inf")).all())

    @property
    def rebuild(self) -> Callable[..., LinearLogits]:
        """Return a function that rebuilds this object from its `tensors`, without holding them."""
        return partial(LinearLogits, softcap=self.softcap, temperature=self.temperature)

    def write(self, rows: torch.Tensor | slice, out: torch.Tensor) -> torch.Tensor:
        """Write the logits of these tokens and of the first out.shape[1] ids into out, (len(rows), ids)."""
        vocab_size = out.shape[1]
        logits_of(self.hidden[rows], self.head[:vocab_size], out)
        if self.bias is not None:
            out += self.bias[:vocab_size]
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out if self.temperature == 1 else out.div_(self.temperature)

    def add(self, rows: torch.Tensor | slice, out: torch.Tensor, factor: float) -> None:
        """Add factor times the logits of these tokens and of the first out.shape[1] ids to out, (len(rows), ids)."""
        if self.softcap is not None:
            out.add_(self.write(rows, torch.empty_like(out)), alpha=factor)
            return
        factor, vocab_size = factor / self.temperature, out.shape[1]
        add_logits_of(self.hidden[rows], self.head[:vocab_size], out, factor)
        if self.bias is not None:
            out.add_(self.bias[:vocab_size], alpha=factor)

    def slope(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute d logits / d (hidden @ head.T + bias) times temperature, from logits as `write` gives them."""
        return 1 - (logits * (self.temperature / self.softcap)).square_()


@dataclass(frozen=True)
class GivenLogits:
    """Logits that an engine has computed: (tokens, V), any float dtype, -inf allowed.

    Raises:
        ValueError: another shape.
    """

    logits: torch.Tensor

    softcap = None
    temperature = 1.0

    def __post_init__(self) -> None:
        if self.logits.dim() != 2:
            raise ValueError(
                f"logits of shape {tuple(self.logits.shape)} are not (tokens, V); flatten them with .flatten(0, -2)"
            )

    @property
    def tokens(self) -> int:
        return self.logits.shape[0]

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return wide(self.logits.dtype)

    @property
    def device(self) -> torch.device:
        return self.logits.device

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return (self.logits,)

    @property
    def masks_ids(self) -> bool:
        """Tell whether a logit of -inf may exclude an id: true also if a logit is NaN."""
        return self.logits.numel() > 0 and not bool(self.logits.detach().amin() > float("-inf"))

    @property
    def rebuild(self) -> Callable[..., GivenLogits]:
        return GivenLogits

    def write(self, rows: torch.Tensor | slice, out: torch.Tensor) -> torch.Tensor:
        """Write the logits of these tokens and of the first out.shape[1] ids into out, (len(rows), ids)."""
        return out.copy_(self.logits[rows, : out.shape[1]])

    def add(self, rows: torch.Tensor | slice, out: torch.Tensor, factor: float) -> None:
        """Add factor times the logits of these tokens and of the first out.shape[1] ids to out, (len(rows), ids)."""
        out.add_(self.logits[rows, : out.shape[1]], alpha=factor)


@dataclass(frozen=True)
class ComposedLogits:
    """Logits z = sum_i c_i z_i with sum_i c_i = 1 of the composed teacher, log q = sum_i c_i log p_i - log Z.

    Never a student. The parts are summed in a chunk's buffer, so composing needs no extra memory.

    Attributes:
        parts: logits of the same tokens each.
        factors: the c_i. A part with factor 0 is not computed. A logit of -inf in a part with a negative factor gives
            NaN: q is undefined.

    Raises:
        ValueError: parts and factors, or the parts' tokens, differ in number, or factors do not sum to 1.
    """

    parts: tuple[LinearLogits | GivenLogits, ...]
    factors: tuple[float, ...]

    softcap = None
    temperature = 1.0

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.factors):
            raise ValueError(f"{len(self.parts)} parts and {len(self.factors)} factors")
        if not math.isclose(math.fsum(self.factors), 1, abs_tol=1e-9):
            raise ValueError(f"factors {self.factors} do not sum to 1")
        if len({part.tokens for part in self.parts}) > 1:
            raise ValueError(f"parts of {[part.tokens for part in self.parts]} tokens")

    @property
    def tokens(self) -> int:
        return self.parts[0].tokens

    @property
    def vocab_size(self) -> int:
        return min(part.vocab_size for part in self.parts)

    @property
    def dtype(self) -> torch.dtype:
        return reduce(torch.promote_types, (part.dtype for part in self.parts))

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    def masks_ids(self) -> bool:
        return any(part.masks_ids for part in self.parts)

    @property
    def rebuild(self) -> Callable[..., ComposedLogits]:
        """Return a function that rebuilds this object from its `tensors`, without holding them."""
        return partial(_compose, [(part.rebuild, len(part.tensors)) for part in self.parts], self.factors)

    def write(self, rows: torch.Tensor | slice, out: torch.Tensor) -> torch.Tensor:
        """Write the logits of these tokens and of the first out.shape[1] ids into out, (len(rows), ids)."""
        (first, factor), *others = zip(self.parts, self.factors, strict=True)
        first.write(rows, out)
        if factor != 1:
            out.mul_(factor)
        for part, factor in others:
            if factor != 0:
                part.add(rows, out, factor)
        return out


def _compose(parts: list[tuple[Callable, int]], factors: tuple[float, ...], *tensors) -> ComposedLogits:
    """Build ComposedLogits; each part takes its count of the tensors, in order."""
    remaining = iter(tensors)
    return ComposedLogits(tuple(build(*islice(remaining, count)) for build, count in parts), factors)
