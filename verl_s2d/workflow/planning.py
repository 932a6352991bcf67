"""Recipe and choices -> plan: which rows, in what order their stages are built, and where."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from verl_s2d.workflow.graph import Node, build_order, users_of
from verl_s2d.workflow.manifest import is_built
from verl_s2d.workflow.recipe import Recipe
from verl_s2d.workflow.recipe_file import check_rows
from verl_s2d.workflow.rows import Row, build_rows
from verl_s2d.workflow.stages.base import Context

_ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/davinci_manager")


@dataclass(frozen=True)
class Plan:
    """Everything `run`, `status`, `plan` and `report` need to know."""

    recipe: Recipe
    rows: list[Row]
    context: Context

    @cached_property
    def order(self) -> list[Node]:
        """All stages, each once, in the order in which they are built."""
        return build_order(row.target for row in self.rows)

    def missing(self) -> list[Node]:
        """The stages still to be built."""
        return [node for node in self.order if not is_built(node, self.context.directory(node))]

    def rows_of(self, node: Node) -> list[str]:
        """Names of the rows that use a stage, each once."""
        return list(dict.fromkeys(self.rows[i].name for i in self._users[node.digest]))

    @cached_property
    def _users(self) -> dict[str, list[int]]:
        return users_of([row.target for row in self.rows])


def make_plan(
    recipe: Recipe, *, run_dir: Path | None = None, rows: list[str] | None = None, seeds: list[int] | None = None
) -> Plan:
    """Resolve rows and seeds (the recipe's own unless given) and build the graphs.

    `["all"]` is every row for which the recipe has a teacher.

    Raises:
        UserError: unknown rows, unreadable inputs, missing stage settings.
    """
    names = _possible(recipe) if rows == ["all"] else list(dict.fromkeys(rows or recipe.rows))
    check_rows(names, "--rows", recipe.row_names)
    device = resolve_device(recipe.cluster.device)
    context = Context((run_dir or Path("runs") / recipe.name).resolve(), recipe.cluster, device)
    return Plan(recipe, build_rows(recipe, names, seeds or recipe.seeds, device), context)


def _possible(recipe: Recipe) -> list[str]:
    def possible(name: str) -> bool:
        if name in recipe.matched:
            return possible(recipe.matched[name].row) and possible(recipe.matched[name].to)
        return recipe.sft_teacher is not None or name != "sft-teacher"

    return [name for name in recipe.row_names if possible(name)]


def resolve_device(choice: str) -> str:
    """`cpu` or `cuda` (verl's word for any accelerator). Looks for driver files: asking torch would take seconds."""
    if choice != "auto":
        return choice
    return "cuda" if any(Path(p).exists() for p in _ACCELERATORS) or shutil.which("nvidia-smi") else "cpu"
