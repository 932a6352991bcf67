"""Read cached rollouts together with the teacher's likely tokens, which stand in for a teacher's engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from verl.utils.dataset.dataset_utils import SFTTensorCollator

from verl_s2d.errors import UserError
from verl_s2d.sampling import likely_tokens
from verl_s2d.signals.in_verl.top_k_loss import IDS, LOG_PROBS
from verl_s2d.stages.shared.problem_weights import MeasuredWeights
from verl_s2d.stages.warmup.rollout_dataset import CachedRollouts


class RolloutsWithLikelyTokens(CachedRollouts):
    """Cached rollouts with the k most likely tokens of the teacher at each response token.

    Args:
        path: the file, or the files of several teachers, which are one cache.
        k: tokens to read, at most as many as the cache stores.
        weights: as of CachedRollouts.

    Raises:
        UserError: as CachedRollouts; or the cache stores no likely tokens, fewer than k, or not one row a token.
    """

    def __init__(self, path: str | Sequence[str], k: int, weights: MeasuredWeights | None = None):
        super().__init__(path, weights)
        files = [path] if isinstance(path, str) else list(path)
        found = [_stored(Path(file).expanduser(), file, k) for file in files]
        lengths, self._ids, self._log_probs = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if not np.array_equal(lengths, self._responses.lengths):
            raise UserError(
                "the cache's likely tokens are not those of its responses",
                key="data.train_files",
                value=path,
                remedy="sample it again",
            )
        self._ends = np.cumsum(lengths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Add the teacher's ids int32 and log-probs float32, (prompt + response, k): row t is about token t + 1."""
        row, place = super().__getitem__(index), self._kept[index]
        tokens, end = int(self._responses.lengths[place]), self._ends[place]
        for name, stored in ((IDS, self._ids), (LOG_PROBS, self._log_probs)):
            about = torch.zeros(len(row["input_ids"]), stored.shape[1], dtype=torch.from_numpy(stored[:0]).dtype)
            about[-tokens - 1 : -1] = torch.from_numpy(stored[end - tokens : end].copy())
            row[name] = about
        return row


class TeacherCollator(SFTTensorCollator):
    """verl's collator, which cannot concatenate sequences of vectors, for rows that may have the teacher's tokens."""

    def __call__(self, batch: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        plain = [{name: value for name, value in row.items() if name not in (IDS, LOG_PROBS)} for row in batch]
        collated = super().__call__(plain)
        for name in {IDS, LOG_PROBS} & batch[0].keys():
            collated[name] = torch.nested.as_nested_tensor([row[name] for row in batch], layout=torch.jagged)
        return collated


def _stored(path: Path, file: str, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a file's response lengths, and its k likeliest ids and log-probs, (tokens, k)."""
    names, stored = [likely_tokens.IDS, likely_tokens.LOG_PROBS], 0
    if set(names) <= set(pq.read_schema(path).names):
        ids, log_probs = (column.combine_chunks() for column in pq.read_table(path, columns=names).columns)
        stored = ids.type.value_type.list_size
    if stored < k:
        what = f"the {stored} most likely tokens" if stored else "no likely tokens"
        raise UserError(
            f"the cache {file} stores {what} of the teacher",
            key="s2d.signal.k",
            value=k,
            remedy=f"sample it again with log_probs={k} (a recipe does so by itself)"
            + (f", or use at most {stored}" if stored else ""),
        )
    lengths = pc.list_value_length(ids).to_numpy(zero_copy_only=False)
    return lengths, *(_flat(column, stored)[:, :k] for column in (ids, log_probs))


def _flat(column: pa.ListArray, k: int) -> np.ndarray:
    """Return a column of lists of k as (tokens, k)."""
    return column.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, k)
