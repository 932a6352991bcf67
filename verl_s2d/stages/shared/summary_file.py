"""Read the JSON file in which a stage's process sums up what it has made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verl_s2d.workflow.failures import StageFailed


def read_summary(file: Path, complete: Callable[[Any], object]) -> Any:
    """Read a summary from the stage's directory.

    Args:
        complete: given the content, true if the stage has made everything; it may raise KeyError or TypeError.

    Raises:
        StageFailed: the file is missing, broken or not complete.
    """
    try:
        summary = json.loads(file.read_text())
        if complete(summary):
            return summary
        problem = "something that the stage should have made is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise StageFailed(f"{file} is incomplete: {problem}.", log=file.parent / "log.txt")
