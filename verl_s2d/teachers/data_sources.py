"""Read which data sources the problems of a verl command have, before any worker starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.teachers.router import Router


def check_routing(router: Router, files: str | Sequence[str]) -> None:
    """Check that every problem has a teacher, and every teacher a problem.

    Remote files, which only verl can read, are looked at step by step, as problems are sampled.

    Args:
        files: verl's data.train_files: parquets with the column data_source.

    Raises:
        UserError: a data source that nobody serves, a model that serves none, or a file without data sources.
    """
    paths = [files] if isinstance(files, str) else list(files)
    if any("://" in path for path in paths):
        return
    router.require_all_served({source for path in paths for source in _data_sources(Path(os.path.expanduser(path)))})


def _data_sources(path: Path) -> set[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return set(pq.read_table(path, columns=["data_source"])["data_source"].unique().to_pylist())
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(
            f"the problems' data sources, by which they are routed, cannot be read: {error}",
            key="data.train_files",
            value=str(path),
            remedy="give a parquet with verl's column data_source, or one teacher for all problems",
        ) from error
