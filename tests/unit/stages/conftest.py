"""Artefacts that several tests of the warmup read; nobody changes them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.tiny import WORDS, write_model


@pytest.fixture(scope="session")
def cached(tmp_path_factory) -> Path:
    """Student, a larger teacher, and a cache whose rollouts differ in length (so token counts differ by rank)."""
    directory = tmp_path_factory.mktemp("warmup")
    write_model(directory / "student", seed=0)
    write_model(directory / "tied-student", seed=0, tied=True)
    write_model(directory / "teacher", seed=1, layers=3, hidden=64)
    generator = torch.Generator().manual_seed(0)
    rollouts = [
        {
            "prompt_ids": torch.randint(3, 24, (3 + i % 3,), generator=generator).tolist(),
            "problem_id": f"p{i}",
            "response_ids": [*torch.randint(3, 24, (1 + 3 * (i % 4),), generator=generator).tolist(), 1],
        }
        for i in range(8)
    ]
    pq.write_table(pa.Table.from_pylist(rollouts), directory / "rollouts.parquet")
    return directory


@pytest.fixture(scope="session")
def warmup_models(tmp_path_factory) -> Path:
    """Two students; the second knows eight words."""
    directory = tmp_path_factory.mktemp("inputs")
    write_model(directory / "student")
    write_model(directory / "small-vocabulary", words=WORDS[:8])
    return directory
