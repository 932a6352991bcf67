"""Divide a micro-batch among several teachers, for a loss over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine import BaseEngine

from verl_s2d.teachers.frozen_teacher import FrozenTeachers
from verl_s2d.teachers.router import TEACHER, TEACHER_OF_ROW

_TOKENS = "weight"


class Part(NamedTuple):
    """The rollouts of a micro-batch that one teacher is asked about.

    Attributes:
        frozen: this teacher and the signal's other models.
        data: these rollouts.
        at: (positions,) of their logits among those of the micro-batch; None for all.
        padded: the padded length of these rollouts, if sequences are not packed.
        counts: False for a rollout of another teacher, without which this rank would miss a pass of all ranks.
    """

    frozen: FrozenTeachers
    data: TensorDict
    at: torch.Tensor | None = None
    padded: int | None = None
    counts: bool = True

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Select this part of values in the layout of the micro-batch's logits, differentiably."""
        if self.at is None:
            return values
        # Called inside a frozen engine's pass, which has no gradients.
        with torch.enable_grad():
            return values[self.at]

    def placed(self, values: torch.Tensor, rows: int) -> torch.Tensor:
        """Return this part's values in that layout, (rows,), zero elsewhere."""
        return values if self.at is None else values.new_zeros(rows).index_add(0, self.at, values)


class TeachersOfRows:
    """Asks each frozen model about its own rollouts.

    A sharded engine's pass is one of all ranks. So every rank asks every teacher once for each micro-batch: where it
    has no rollout of its, about the shortest, whose answer counts for nothing.

    Args:
        frozen: role -> forward-only engine, initialised.
        served: roles that take the teacher's place, in the order of the router's models; empty for one teacher.
        linear: ask for hidden states and heads instead of logits.
        own_prompts: roles that read other prompts than the student; none where teachers are served by data source.
    """

    def __init__(
        self,
        frozen: Mapping[str, BaseEngine],
        served: Sequence[str],
        *,
        linear: bool,
        own_prompts: frozenset[str] = frozenset(),
    ):
        self.served = tuple(served)
        others = {role: engine for role, engine in frozen.items() if role not in served}
        places: dict[int, list[int]] = {}
        for place, role in enumerate(served):
            places.setdefault(id(frozen[role]), []).append(place)
        self._asked = [
            (FrozenTeachers({TEACHER: frozen[served[own[0]]], **others}, linear=linear), own) for own in places.values()
        ] or [(FrozenTeachers(frozen, linear=linear, own_prompts=own_prompts), [])]

    @property
    def all(self) -> list[FrozenTeachers]:
        return [frozen for frozen, _ in self._asked]

    def parts(self, micro_batch: TensorDict, padded: int | None, device: torch.device) -> Iterator[Part]:
        """Yield the parts of a micro-batch; the whole, where one checkpoint answers for all.

        Args:
            padded: the padded sequence length, if sequences are not packed.
            device: of the logits.
        """
        if len(self._asked) == 1:
            yield Part(self._asked[0][0], micro_batch, padded=padded)
            return
        teachers, offsets = _teachers(micro_batch), micro_batch["input_ids"].offsets()
        lengths = offsets.diff()
        for frozen, own in self._asked:
            rows = torch.isin(teachers, torch.tensor(own, device=teachers.device)).nonzero().flatten()
            counts = len(rows) > 0
            rows = rows if counts else lengths.argmin().unsqueeze(0).to(rows.device)
            longest = None if padded is None else int(lengths[rows].max())
            at = [
                torch.arange(int(offsets[row]), int(offsets[row + 1]))
                if longest is None
                else torch.arange(longest) + int(row) * padded
                for row in rows
            ]
            data = tu.index_select_tensor_dict(micro_batch, rows.cpu())
            yield Part(frozen, data, torch.cat(at).to(device), longest, counts)

    def sums(
        self, data: TensorDict, rows: torch.Tensor, values: Mapping[str, torch.Tensor], share: float, prefix: str
    ) -> dict[str, Metric]:
        """Sum values over each teacher's tokens, for `means`; empty for one teacher.

        Args:
            rows: (tokens,), True where a response token is predicted.
            values: name -> (tokens,), packed.
            share: factor of all sums.
        """
        of_token = _teachers(data).repeat_interleave(data["input_ids"].offsets().diff()) if self.served else None
        metrics = {}
        for place, role in enumerate(self.served):
            own = rows & (of_token.to(rows.device) == place)
            for name, of_tokens in {_TOKENS: torch.ones_like(own, dtype=torch.float32), **values}.items():
                total = of_tokens[own].sum() * share
                metrics[f"{prefix}{role}/{name}"] = Metric(AggregationType.SUM, total)
        return metrics


def means(metrics: MutableMapping[str, float], prefix: str, served: Sequence[str]) -> dict[str, float]:
    """Take the sums of `TeachersOfRows.sums` out of a step's metrics and divide; <role>/<name> -> mean.

    A teacher without a token in the step has no means.
    """
    found = {}
    for role in served:
        of_role = f"{prefix}{role}/"
        sums = {name: metrics.pop(name) for name in [name for name in metrics if name.startswith(of_role)]}
        tokens = sums.pop(f"{of_role}{_TOKENS}", 0.0)
        if tokens:
            found |= {name.removeprefix(prefix): total / tokens for name, total in sums.items()}
    return found


def _teachers(data: TensorDict) -> torch.Tensor:
    field = data[TEACHER_OF_ROW]
    return field.values() if field.is_nested else field
