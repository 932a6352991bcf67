"""Send a training stage's metrics to trackers that verl's logger knows (verl/utils/tracking.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_s2d.verl_settings.overrides import value_of

_READ_HERE = ("console", "file")
"""verl's loggers that the workflow reads."""


def logger_overrides(chosen: Mapping[str, Any], trackers: Sequence[str], *, project: str, run: str) -> dict[str, Any]:
    """Set verl's loggers: those of the stage's own `verl:`, the recipe's trackers, and the two that the workflow reads.

    Args:
        chosen: the stage's own keys, of which project and experiment name hold where they are set.
        project, run: names in trackers; verl's own defaults are the same for every stage.
    """
    given = value_of(chosen, "trainer.logger")
    own = [given] if isinstance(given, str) else list(given or [])
    backends = list(dict.fromkeys([*own, *trackers, *_READ_HERE]))
    names = {"trainer.project_name": project, "trainer.experiment_name": run}
    if not set(backends).difference(_READ_HERE):
        names = {}
    return {"trainer.logger": backends, **{key: name for key, name in names.items() if value_of(chosen, key) is None}}


def tracker_environment(overrides: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Keep TensorBoard's files of each stage in a directory of their own, and all of a run together."""
    return {"TENSORBOARD_DIR": str(directory)} if "tensorboard" in overrides["trainer.logger"] else {}
