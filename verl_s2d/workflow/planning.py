"""Recipe and choices -> plan: which rows, in what order their stages are built, and where."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from verl_s2d import redaction
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import ACCELERATORS
from verl_s2d.recipe.row_checks import check_rows
from verl_s2d.recipe.rows import Row, build_rows
from verl_s2d.recipe.schema import Recipe, Source
from verl_s2d.verl_settings.reserved_keys import check_reserved_keys
from verl_s2d.workflow.graph import Node, build_order, users_of
from verl_s2d.workflow.stage import Context
from verl_s2d.workflow.store.manifest import is_built


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

    def facts(self) -> dict[str, Any]:
        """What a report says of the run besides its numbers: keywords of evaluation.report.Facts but the name."""
        recipe = self.recipe
        models = {role: getattr(recipe, role) for role in ("student", "teacher", "sft_teacher")}
        about = {role.replace("_", " "): _described(source) for role, source in models.items() if source is not None}
        verifier = recipe.verifier if isinstance(recipe.verifier, str) else recipe.verifier.get("name", "")
        about |= {
            "labels": "all" if recipe.data.labels is None else f"{recipe.data.labels:,}",
            "verifier": str(verifier),
        }
        facts = {"about": about, "command": self._command(), "published": recipe.published}
        return redaction.current().data(facts)

    def _command(self) -> str:
        """What runs this plan again."""
        recipe, run_dir = self.recipe, self.context.run_dir
        words = ["verl-s2d", "run", _near(recipe.path)]
        rows, seeds = (list(dict.fromkeys(getattr(row, key) for row in self.rows)) for key in ("name", "seed"))
        words += [] if rows == recipe.rows else ["--rows", ",".join(rows)]
        words += [] if seeds == recipe.seeds else ["--seeds", ",".join(map(str, seeds))]
        words += [] if run_dir == _default_run_dir(recipe) else ["--run-dir", _near(run_dir)]
        return shlex.join(words)


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
    check_reserved_keys(recipe)
    device = resolve_device(recipe.cluster.device)
    if recipe.cluster.warm_start is True and device != "cpu":
        raise UserError(
            "A warm start forks processes that have imported torch and vLLM, and CUDA does not work in a fork.",
            key="cluster.warm_start",
            value=True,
            remedy="Remove it, or set it to false.",
        )
    context = Context(run_dir.resolve() if run_dir else _default_run_dir(recipe), recipe.cluster.on(device), device)
    return Plan(recipe, build_rows(recipe, names, seeds or recipe.seeds, device), context)


def _default_run_dir(recipe: Recipe) -> Path:
    return (Path("runs") / recipe.name).resolve()


def _near(path: Path) -> str:
    """As seen from here, where it is below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _described(source: Source) -> str:
    """A model in a few words."""
    return source.script or f"{source.model}{f' at {source.revision}' if source.revision else ''}"


def _possible(recipe: Recipe) -> list[str]:
    def possible(name: str) -> bool:
        if name in recipe.matched:
            return possible(recipe.matched[name].row) and possible(recipe.matched[name].to)
        return recipe.sft_teacher is not None or name != "sft-teacher"

    return [name for name in recipe.row_names if possible(name)]


def resolve_device(choice: str) -> str:
    """Resolve to `cpu` or `cuda` (verl's word for any accelerator). Driver files decide: torch would take seconds.

    Raises:
        UserError: `auto` with RAY_ADDRESS on a host without an accelerator, whose cluster may have some.
    """
    if choice != "auto":
        return choice
    if accelerator_here():
        return "cuda"
    if os.environ.get("RAY_ADDRESS"):
        raise UserError(
            "This host has no accelerator, which says nothing about the nodes of the Ray cluster at RAY_ADDRESS.",
            key="cluster.device",
            value=choice,
            remedy="Set it to cuda, or to cpu for a cluster without accelerators.",
        )
    return "cpu"


def accelerator_here() -> bool:
    """Report whether this host has an accelerator's driver file, or nvidia-smi on PATH."""
    return any(Path(file).exists() for file in ACCELERATORS) or shutil.which("nvidia-smi") is not None
