"""Define a plan: the rows of a comparison, the build order of their stages, and the run directory."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from verl_s2d import redaction
from verl_s2d.recipe.schema import Recipe
from verl_s2d.recipe.source import ModelSource
from verl_s2d.workflow.graph import Node, build_order, users_of
from verl_s2d.workflow.hosts.ray_places import Demand, most_demanding
from verl_s2d.workflow.stage import Context
from verl_s2d.workflow.store.manifest import is_built


@dataclass(frozen=True)
class Row:
    """A row of the report.

    Attributes:
        target: the row's evaluation node, from which all its stages follow.
    """

    name: str
    seed: int
    target: Node


@dataclass(frozen=True)
class Plan:
    """Everything `run`, `status`, `plan` and `report` need to know."""

    recipe: Recipe
    rows: list[Row]
    context: Context

    @cached_property
    def order(self) -> list[Node]:
        """List all stages in build order, each once."""
        return build_order(row.target for row in self.rows)

    def missing(self) -> list[Node]:
        """List the stages still to be built."""
        return [node for node in self.order if not is_built(node, self.context.directory(node))]

    def rows_of(self, node: Node) -> list[str]:
        """List the names of the rows that use a stage, each once."""
        return list(dict.fromkeys(self.rows[i].name for i in self._users[node.digest]))

    @cached_property
    def _users(self) -> dict[str, list[int]]:
        return users_of([row.target for row in self.rows])

    @property
    def ray_demand(self) -> Demand:
        """Return the CPUs and accelerators that the most demanding stage holds on Ray."""
        return most_demanding(node.stage.ray_demand(node, self.context.cluster) for node in self.order)

    def facts(self) -> dict[str, Any]:
        """Collect the facts that a report prints beside its numbers: keywords of report.write.Facts."""
        recipe = self.recipe
        about = {role.replace("_", " "): _described(source) for role, source in recipe.models.items()}
        about |= {
            "labels": "all" if recipe.data.labels is None else f"{recipe.data.labels:,}",
            "verifier": recipe.verifier_names,
        }
        facts = {"about": about, "command": self._command(), "published": recipe.published}
        return redaction.current().data(facts)

    def _command(self) -> str:
        """Return the command line that runs this plan again."""
        recipe, run_dir = self.recipe, self.context.run_dir
        words = ["verl-s2d", "run", _near(recipe.path), *recipe.origin.overrides]
        words += ["--shrink"] if recipe.origin.shrink else []
        rows, seeds = (list(dict.fromkeys(getattr(row, key) for row in self.rows)) for key in ("name", "seed"))
        words += [] if rows == recipe.chosen_rows else ["--rows", ",".join(rows)]
        words += [] if seeds == recipe.seeds else ["--seeds", ",".join(map(str, seeds))]
        words += [] if run_dir == default_run_dir(recipe) else ["--run-dir", _near(run_dir)]
        return shlex.join(words)


def default_run_dir(recipe: Recipe) -> Path:
    """Locate the run directory of a recipe for which none was named."""
    return (Path("runs") / recipe.name).resolve()


def _near(path: Path) -> str:
    """Shorten a path below the working directory to a relative one."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _described(source: ModelSource) -> str:
    """Describe a model in a few words."""
    return source.script or f"{source.model}{f' at {source.revision}' if source.revision else ''}"
