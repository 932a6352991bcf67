"""Define the contract between the kernel and a stage. The kernel calls these methods and no others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node, stage_dir
from verl_s2d.workflow.hosts.ray_places import Demand
from verl_s2d.workflow.ledger import Ledger, empty_ledger
from verl_s2d.workflow.store.saved_weights import export_problem

if TYPE_CHECKING:
    from verl_s2d.metrics.metric_table import Metric


@dataclass(frozen=True)
class Context:
    """The run directory and machine: what a command needs beyond its node."""

    run_dir: Path
    cluster: Cluster = field(default_factory=Cluster)
    device: str = "cpu"

    def directory(self, node: Node) -> Path:
        return stage_dir(self.run_dir, node)


@dataclass(frozen=True)
class Command:
    """A process to start; `env` is added to the run's environment."""

    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)


class Stage(ABC):
    """A kind of stage. Stateless: all state is in the node and its directory.

    Attributes:
        kind: name in digests and directories.
        symbol: name in a drawn flow; empty for stages that make no step of it.
        semantics: raised by hand when the meaning of the kind changes, which rebuilds its nodes and their users.
        prepares: the stage is cheap and built first, so that its output can be checked before anything is trained.
        trains: the stage logs steps, raises alarms, saves checkpoints and resumes from them.
        consumes: ledger items that the stage fills and rows can be matched by.
        required_files: files that a successful process leaves behind.
        metrics: metrics that the stage logs, read by alarms, plots and ledger.
        reserved: verl's keys that `command` sets itself -> what to write in a recipe instead.
    """

    kind: ClassVar[str]
    symbol: ClassVar[str] = ""
    semantics: ClassVar[int] = 1
    prepares: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    consumes: ClassVar[tuple[str, ...]] = ()
    required_files: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[Sequence[Metric]] = ()
    reserved: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def command(self, node: Node, context: Context, attempt: int) -> Command:
        """Build the command of one attempt. `attempt` counts from 1; its metrics go to `metrics_file`."""

    @abstractmethod
    def describe(self, node: Node) -> str:
        """Describe the stage in one line, for `plan`."""

    def prepare_resume(self, node: Node, directory: Path, cluster: Cluster, note: Callable[[str], None]) -> None:
        """Make the remains of earlier attempts readable for the next one; `note` shows a line to the user.

        Raises:
            StageFailed: they can be neither read nor set aside.
        """
        return

    def finalize(self, node: Node, directory: Path) -> None:
        """Verify the process's output and move it to its final place. Safe to call again.

        Raises:
            StageFailed: the result is incomplete.
        """
        for name in self.required_files:
            if not (directory / name).is_file():
                raise StageFailed(f"{node.name} ended without writing {name}.", log=directory / "log.txt")

    def finished_before(self, node: Node, directory: Path) -> bool:
        """Report whether an earlier attempt did all the work: only `finalize` and the manifest are missing."""
        return False

    def clean(self, directory: Path) -> None:
        """Delete files that are not needed once the manifest is written."""
        return

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        """Count what the stage consumed."""
        return empty_ledger(seconds)

    def end(self, node: Node, directory: Path) -> Mapping[str, Any]:
        """Say for the manifest why it ended before its last step: {stopped: by an alarm}, {until: by a rule} or {}."""
        return {}

    def total_steps(self, node: Node) -> int | None:
        """Return the number of steps that its metrics count to; None for a stage without steps."""
        return None

    def model_directory(self, directory: Path) -> Path:
        """Locate the Hugging Face model in the directory of a stage that makes one."""
        return directory / "model"

    def frozen_roles(self, node: Node) -> tuple[str, ...]:
        """List the roles of the frozen models that it asks."""
        return ()

    def makes_model(self, node: Node) -> bool:
        """Report whether the result is a model."""
        return self.trains

    def needs_ray(self, context: Context) -> bool:
        """Report whether its process joins the run's Ray cluster."""
        return self.trains

    def ray_demand(self, node: Node, cluster: Cluster) -> Demand:
        """Count the CPUs and accelerators that the stage holds on Ray."""
        return Demand(cluster.nodes, cluster.gpus_per_node)


def metrics_file(directory: Path, attempt: int) -> Path:
    """Locate the metrics of attempt number `attempt`."""
    return directory / "metrics" / f"attempt-{attempt}.jsonl"


def model_location(node: Node, role: str, context: Context) -> str:
    """Locate the model that a node reads in a role: a path or a hub id."""
    if role in node.externals:
        return node.externals[role].location
    source = node.inputs[role]
    return str(source.stage.model_directory(context.directory(source)))


def trusts_remote_code(node: Node, role: str) -> bool:
    """Report whether the recipe lets the model in a role run its own code; the model it was trained from decides."""
    while role in node.inputs:
        node, role = node.inputs[role], "model"
    return (
        node.externals[role].trust_remote_code
        if role in node.externals
        else node.settings.get("trust_remote_code", False)
    )


def require_export(node: Node, model: Path) -> None:
    """Raise StageFailed unless `model` is a complete Hugging Face directory."""
    problem = export_problem(model)
    if problem:
        raise StageFailed(f"{node.name} left an incomplete model in {model}: {problem}.", log=model.parent / "log.txt")
