"""Students and teachers over a vocabulary that ranks divide, and comparisons; the cases are in vocab_parallel_ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from verl_s2d.objectives.divergence import Divergence, divergence
from verl_s2d.objectives.logits import LinearLogits
from verl_s2d.objectives.vocabulary import VocabularyShard

# Name -> (real ids, the student's ids a rank, the teacher's) for n ranks; 24 divides by 2 and 4.
LAYOUTS: dict[str, Callable[[int], tuple[int, int, int]]] = {
    "even": lambda n: (24, 24 // n, 24 // n),
    "last shard partly padding": lambda n: (22, 24 // n, 24 // n),
    "last shard only padding": lambda n: (22, -(-22 // (n - 1)), -(-22 // (n - 1))),
    "teacher padded further": lambda n: (22, 24 // n, 28 // n),
    "student padded further": lambda n: (22, 28 // n, 24 // n),
    "teacher's last shard only padding": lambda n: (22, 24 // n, -(-22 // (n - 1))),
    "student's last shard only padding": lambda n: (22, -(-22 // (n - 1)), 24 // n),
}


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Problem:
    """Student and teacher over whole padded vocabularies, and how `world` ranks divide them."""

    student: torch.Tensor | LinearLogits
    teacher: torch.Tensor | LinearLogits
    real: int
    sizes: tuple[int, int]
    ids: torch.Tensor

    def whole(self, **options) -> tuple[Divergence, list[torch.Tensor]]:
        """The result of a single process, and the leaves that it can be differentiated to."""
        student, leaves = leaves_of(self.student, slice(None))
        options = {"sampled_ids": self.ids} | options
        return divergence(student, self.teacher, vocab_size=self.real, **options), leaves

    def shard(self, rank: int, **options) -> tuple[Divergence, list[torch.Tensor]]:
        """The same of a rank in its group."""
        mine, teachers = (slice(rank * size, (rank + 1) * size) for size in self.sizes)
        student, leaves = leaves_of(self.student, mine)
        teacher, _ = leaves_of(self.teacher, teachers)
        shard = VocabularyShard(dist.group.WORLD, mine.start, teachers.start)
        options = {"sampled_ids": self.ids, "vocab_size": self.real, "shard": shard} | options
        return divergence(student, teacher, **options), leaves

    def own(self, rank: int, whole: list[torch.Tensor]) -> list[torch.Tensor]:
        """Select this rank's part of the whole gradients: its ids, and all of the hidden states'."""
        mine = slice(rank * self.sizes[0], (rank + 1) * self.sizes[0])
        if len(whole) == 1:
            return [whole[0][:, mine]]
        return [whole[0], *(gradient[mine] for gradient in whole[1:])]


def leaves_of(
    logits: torch.Tensor | LinearLogits, ids: slice
) -> tuple[torch.Tensor | LinearLogits, list[torch.Tensor]]:
    """These ids' part of the logits, and what it can be differentiated to."""
    if isinstance(logits, torch.Tensor):
        leaf = logits[:, ids].detach().clone().requires_grad_()
        return leaf, [leaf]
    tensors = [logits.hidden, *(t[ids] for t in logits.tensors[1:] if t is not None)]
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return replace(logits, **dict(zip(("hidden", "head", "bias"), tensors, strict=False))), tensors


def problem(
    world: int,
    layout: str = "last shard partly padding",
    sides: tuple[str, str] = ("linear", "linear"),
    dtype: torch.dtype = torch.float64,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Problem:
    """Sampled ids are the first and last of every shard, and the last of the padding."""
    real, *sizes = LAYOUTS[layout](world)
    ids = [edge for rank in range(world) for edge in (rank * sizes[0], (rank + 1) * sizes[0] - 1)]
    ids = torch.tensor([*ids, world * sizes[0] + 5])

    def side(name: str, size: int, width: int, seed: int) -> torch.Tensor | LinearLogits:
        hidden, head = normal(len(ids), width, seed=seed, dtype=dtype), normal(size, width, seed=seed + 1, dtype=dtype)
        # Mass on padding would be noticed.
        head[real:] *= 9
        if name == "given":
            return 2 * hidden @ head.T
        return LinearLogits(hidden, head, normal(size, seed=seed + 2, dtype=dtype), softcap, temperature)

    student, teacher = (
        side(name, world * size, 4 + 2 * place, 10 * place)
        for place, (name, size) in enumerate(zip(sides, sizes, strict=True))
    )
    return Problem(student, teacher, real, tuple(sizes), ids)


def gradients(result: Divergence, leaves: list[torch.Tensor], *upstream: torch.Tensor) -> list[torch.Tensor]:
    """Differentiate divergence, entropy and log-probability of the student, as many as there are upstream gradients."""
    outputs = (result.divergence, result.student_entropy, result.student_log_prob)[: len(upstream)]
    return list(torch.autograd.grad(outputs, leaves, list(upstream), retain_graph=True))


def same(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """To rounding: float32 sums in another order differ by some ulp of their largest terms."""
    for a, b in zip(ours, expected, strict=True):
        largest = max(1.0, b.abs().nan_to_num(0, 0, 0).max().item()) if b.numel() else 1.0
        relative, absolute = (1e-9, 1e-11) if b.dtype == torch.float64 else (1e-5, 5e-6)
        torch.testing.assert_close(a, b, equal_nan=True, rtol=relative, atol=absolute * largest)


def same_everywhere(tensors: list[torch.Tensor]) -> Callable[[], None]:
    """Ask the other ranks at once, complain later: a rank that fails in between would leave the others waiting."""
    mine = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)

    def check() -> None:
        for other in everyone:
            torch.testing.assert_close(other, mine, rtol=0, atol=0, equal_nan=True)

    return check
