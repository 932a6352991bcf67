"""Cached teacher rollouts as training data, in an order that a resumed run continues exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset, Sampler

from verl_s2d.errors import UserError

COLUMNS = ("prompt_ids", "response_ids")


class CachedRollouts(Dataset):
    """Rollouts of rollouts.parquet; the loss falls on response tokens.

    Raises:
        UserError: the file is missing, unreadable, lacks a column, or holds no rollout with a response.
    """

    def __init__(self, path: str):
        key = "data.train_files"
        if not path or not Path(path).is_file():
            raise UserError(
                "the cache of teacher rollouts is missing",
                key=key,
                value=path,
                remedy="make it with python -m verl_s2d.training.rollout_cache",
            )
        try:
            table = pq.read_table(path, columns=list(COLUMNS))
        except Exception as error:  # pyarrow raises several unrelated classes here
            raise UserError(
                f"the cache of teacher rollouts cannot be read: {error}",
                key=key,
                value=path,
                remedy=f"it needs the columns {list(COLUMNS)}",
            ) from error
        pairs = zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True)
        # A rollout without a response has nothing to learn from.
        self.rollouts = [(prompt, response) for prompt, response in pairs if response]
        if not self.rollouts:
            raise UserError("the cache holds no rollout with a response", key=key, value=path, remedy="sample it again")

    def __len__(self) -> int:
        return len(self.rollouts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """input_ids, position_ids, loss_mask, each (prompt + response,) int64; the mask is 1 on response tokens."""
        prompt, response = self.rollouts[index]
        length = len(prompt) + len(response)
        mask = torch.zeros(length, dtype=torch.int64)
        mask[len(prompt) :] = 1
        return {"input_ids": torch.tensor(prompt + response), "position_ids": torch.arange(length), "loss_mask": mask}

    @property
    def largest_id(self) -> int:
        return max(max((*prompt, *response)) for prompt, response in self.rollouts)

    @property
    def longest(self) -> int:
        return max(len(prompt) + len(response) for prompt, response in self.rollouts)


class ShuffledPasses(Sampler[int]):
    """One stream of indices over as many shuffled passes as training needs.

    A batch may straddle two passes. Being one stream, it lets the loader resume by position alone: verl's own epochs
    lose a pass when a checkpoint falls on the end of one.
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
        """verl's trainer calls this; all of training is one epoch here."""
