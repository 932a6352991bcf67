"""What every kind of stage has to say about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from verl_s2d.recipe.schema import Cluster
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node, stage_dir
from verl_s2d.workflow.ledger import Ledger, empty_ledger
from verl_s2d.workflow.store.hf_export import export_problem


@dataclass(frozen=True)
class Context:
    """Where and how stages run: what a command needs beyond its node."""

    run_dir: Path
    cluster: Cluster = field(default_factory=Cluster)
    device: str = "cpu"

    def directory(self, node: Node) -> Path:
        return stage_dir(self.run_dir, node)


@dataclass(frozen=True)
class Command:
    """A process to start; env is added to the environment of the workflow."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)


class StageKind(Protocol):
    """One kind of stage. Stateless; `node` and its directory say everything."""

    semantics: int
    """Raised by hand when the meaning of the kind changes, which rebuilds its nodes and what depends on them."""
    needs_ray: bool
    consumes: tuple[str, ...]
    """Items of the ledger that its stages fill, by the names that rows are matched by."""

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        """How it is started. `attempt` counts from 1; its metrics go to metrics/attempt-<attempt>.jsonl."""

    def finalize(self, node: Node, directory: Path) -> None:
        """Check what the process left and move it where users of the stage look. Safe to call again.

        Raises:
            StageFailed: the result is incomplete.
        """

    def finished_before(self, node: Node, directory: Path) -> bool:
        """Whether an earlier attempt did all the work and only `finalize` and the manifest are missing."""

    def clean(self, directory: Path) -> None:
        """Delete what nobody needs once the manifest is written."""

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        """What the stage consumed."""

    def describe(self, node: Node) -> str:
        """One line for `plan`."""

    def total_steps(self, node: Node) -> int | None:
        """Steps its metrics count to, None when it has none."""


class SimpleKind:
    """Common answers of the kinds that have no steps and need no Ray."""

    semantics = 1
    needs_ray = False
    consumes: tuple[str, ...] = ()
    required_files: tuple[str, ...] = ()

    def finalize(self, node: Node, directory: Path) -> None:
        for name in self.required_files:
            if not (directory / name).is_file():
                raise StageFailed(f"{node.name} ended without writing {name}.", log=directory / "log.txt")

    def finished_before(self, node: Node, directory: Path) -> bool:
        return False

    def clean(self, directory: Path) -> None:
        return None

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        return empty_ledger(seconds)

    def total_steps(self, node: Node) -> int | None:
        return None


def metrics_file(directory: Path, attempt: int) -> Path:
    """Where attempt number `attempt` logs its metrics."""
    return directory / "metrics" / f"attempt-{attempt}.jsonl"


def model_location(node: Node, role: str, context: Context) -> str:
    """Path or hub id of the model that `node` reads in `role`."""
    if role in node.externals:
        return node.externals[role].location
    source = node.inputs[role]
    directory = context.directory(source)
    return str(directory if source.kind == "script" else directory / "model")


def trusts_remote_code(node: Node, role: str) -> bool:
    """Whether the recipe lets the model in `role` bring code of its own: what it was trained from decides."""
    while role in node.inputs:
        node, role = node.inputs[role], "model"
    return (
        node.externals[role].trust_remote_code
        if role in node.externals
        else node.settings.get("trust_remote_code", False)
    )


def require_export(node: Node, model: Path) -> None:
    """Raises StageFailed when `model` is not a complete Hugging Face directory."""
    problem = export_problem(model)
    if problem:
        raise StageFailed(f"{node.name} left an incomplete model in {model}: {problem}.", log=model.parent / "log.txt")


def verifier_argument(node: Node) -> str:
    """`name`, or `/absolute/file.py:function`, as rewards and evaluation take it."""
    name: str = node.settings["verifier"]
    external = node.externals.get("verifier")
    return f"{external.location}:{name}" if external else name


def merged_verl(node: Node) -> dict[str, Any]:
    """All verl overrides of a node that were not computed, decisive and operational."""
    return {**node.settings["verl"], **node.operations["verl"]}
