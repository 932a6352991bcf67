"""Read cached teacher rollouts as training data, in an order that a resumed run continues exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset, Sampler

from verl_s2d.errors import UserError
from verl_s2d.signals.in_verl.problem_factor import PROBLEM_WEIGHT
from verl_s2d.stages.shared.problem_weights import MeasuredWeights
from verl_s2d.teachers.router import TEACHER_OF_ROW, Router

COLUMNS = ("prompt_ids", "response_ids")
DATA_SOURCE = "data_source"
"""Column that several teachers need besides."""
_KEY = "data.train_files"
_PROBLEM = "problem_id"


class CachedRollouts(Dataset):
    """The rollouts of rollouts.parquet, with the loss on response tokens. Rollouts without a response are left out.

    Args:
        path: the file, or the files of several teachers, which are one cache.
        weights: gives each rollout the weight of its problem; None: rollouts carry no weight.
        router: names the teacher of each rollout by its data source; None for one teacher.

    Attributes:
        largest_id: largest token id in the files.
        longest: tokens of the longest rollout, prompt included.

    Raises:
        UserError: a file is missing, unreadable, lacks a column, or has impossible rows; no rollout has a response, a
            problem has no weight, or a rollout no teacher.
    """

    def __init__(self, path: str | Sequence[str], weights: MeasuredWeights | None = None, router: Router | None = None):
        paths = [path] if isinstance(path, str) else list(path or [None])
        for one in paths:
            if not isinstance(one, str) or not Path(one).expanduser().is_file():
                raise UserError(
                    "the cache of teacher rollouts is missing",
                    key=_KEY,
                    value=one,
                    remedy="give the parquet that python -m verl_s2d.stages.rollouts.rollout_cache writes",
                )
        columns = [*COLUMNS, *([_PROBLEM] if weights is not None else []), *([DATA_SOURCE] if router else [])]
        try:
            table = pa.concat_tables(pq.read_table(Path(one).expanduser(), columns=columns) for one in paths)
            self._prompts, self._responses = (_Sequences(table.column(name)) for name in COLUMNS)
            sources = table.column(DATA_SOURCE).to_pylist() if router else []
        except Exception as error:  # pyarrow raises several unrelated classes here
            raise UserError(
                f"the cache of teacher rollouts cannot be read: {error}",
                key=_KEY,
                value=path,
                remedy=f"it needs the columns {columns}; {' and '.join(COLUMNS)} are lists of token ids",
            ) from error
        self._teachers = None if router is None else _teachers(router, sources)
        self._kept = np.flatnonzero(self._responses.lengths)
        if not len(self._kept):
            raise UserError(
                "the cache holds no rollout with a response", key=_KEY, value=path, remedy="sample it again"
            )
        if not self._prompts.lengths[self._kept].all():
            raise UserError(
                "a rollout has no prompt, so nothing predicts its first token",
                key=_KEY,
                value=path,
                remedy="begin each prompt with at least one token",
            )
        ids = np.concatenate([self._prompts.values, self._responses.values])
        if ids.min() < 0:
            raise UserError(f"the cache holds the token id {ids.min()}", key=_KEY, value=path, remedy="sample it again")
        self.largest_id = int(ids.max())
        self.longest = int((self._prompts.lengths + self._responses.lengths).max())
        self._weights = None if weights is None else _weights(weights, table.column(_PROBLEM).to_pylist())

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return input_ids, position_ids and loss_mask, each (prompt + response,) int64; mask 1 on response tokens.

        With weights also the problem's, (1,) float32; with a router the place of the rollout's teacher, (1,).
        """
        prompt, response = self._prompts[self._kept[index]], self._responses[self._kept[index]]
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        mask = torch.zeros_like(ids)
        mask[len(prompt) :] = 1
        row = {"input_ids": ids, "position_ids": torch.arange(len(ids)), "loss_mask": mask}
        if self._teachers is not None:
            row[TEACHER_OF_ROW] = self._teachers[self._kept[index], None]
        return row if self._weights is None else row | {PROBLEM_WEIGHT: self._weights[self._kept[index], None]}


def _weights(weights: MeasuredWeights, problems: list[str]) -> torch.Tensor:
    """Return the weight of each rollout's problem; (rollouts,) float32."""
    by_id = weights.of(problems, key=_KEY)
    return torch.tensor([by_id[problem] for problem in problems])


def _teachers(router: Router, sources: list[str]) -> torch.Tensor:
    """Return the place of each rollout's teacher among the router's models; (rollouts,) int64."""
    router.require_all_served(sources)
    places = {role: place for place, role in enumerate(router.models)}
    return torch.tensor([places[router.role(source)] for source in sources])


class _Sequences:
    """A column of token id lists in one flat array; Python lists would take nine times the memory."""

    def __init__(self, column: pa.ChunkedArray):
        lists = column.cast(pa.large_list(pa.int32())).combine_chunks()
        if lists.null_count or lists.flatten().null_count:
            raise ValueError("values are missing")
        self.values = lists.flatten().to_numpy()
        self.lengths = pc.list_value_length(lists).to_numpy()
        self._ends = np.cumsum(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        end = self._ends[index]
        return self.values[end - self.lengths[index] : end]


class ShuffledPasses(Sampler[int]):
    """A stream of indices over as many shuffled passes as training needs.

    A batch may span two passes. One stream lets the loader resume by position alone: verl's epochs lose a pass when a
    checkpoint falls on the end of an epoch.
    """

    def __init__(self, size: int, total: int, seed: int):
        self.size, self.total, self.seed = size, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        given = 0
        pass_number = 0
        while given < self.total:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + pass_number)
            for index in torch.randperm(self.size, generator=generator)[: self.total - given].tolist():
                yield index
                given += 1
            pass_number += 1

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: verl's trainer calls this for each epoch, and training is one epoch here."""
