"""Share checkpoints, resume, budget and hand-off between the training stages 1, 2a, 2b and 3."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from verl_s2d.errors import UserError
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.stages.shared.best_checkpoint import hand_off_best
from verl_s2d.stages.shared.budget import ended_early, last_step
from verl_s2d.stages.shared.hand_off import finished, hand_off, kept
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.verifiers.ledgered import verifier_calls
from verl_s2d.verl_settings.composed import Configuration, composed
from verl_s2d.verl_settings.loggers import logger_overrides, tracker_environment
from verl_s2d.verl_settings.stage_sizes import Training
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger, empty_ledger, sum_over_steps
from verl_s2d.workflow.stage import Context, Stage, metrics_file, model_location, trusts_remote_code
from verl_s2d.workflow.store import checkpoints
from verl_s2d.workflow.watch import early_stop

SLICE = "Choose the data under `data:`; which slice a stage reads follows from the row."
MODEL = "Set `models:`, or `student:` and `teacher:`; which model a stage starts from follows from the row."
STEPS = "Set `steps:` of the stage."
STAGE = "Leave it out: every stage keeps its checkpoints in its own directory, and resumes from them."
SEED = "Set `seeds:` of the recipe."
CLUSTER = "Set it under `cluster:`."
TRUST = "Set `trust_remote_code: true` of the model under `models:`, `student:` or `teacher:`, whose code it is."
_RESERVED = {
    "trainer.total_training_steps": STEPS,
    "trainer.default_local_dir": STAGE,
    "trainer.resume_mode": STAGE,
    "trainer.save_freq": "Set `save_every:` of the stage.",
    "s2d.save_minutes": "Set `save_minutes:` of the stage.",
    "s2d.until": "Set `until:` of the stage.",
    "trainer.n_gpus_per_node": CLUSTER,
    "trainer.nnodes": CLUSTER,
    "hydra.run.dir": STAGE,
}


class TrainingStage(Stage):
    """Common parts of the stages that train.

    Attributes:
        configuration: the configuration that the stage's trainer composes.
        keep_key: verl's name of the number of checkpoints to keep.
        model_section: verl's section of the model that is trained.
    """

    trains = True
    configuration: ClassVar[Configuration]
    keep_key: ClassVar[str]
    model_section: ClassVar[str]
    reserved = _RESERVED

    def composed_settings(self, node: Node, context: Context) -> Mapping[str, Any]:
        """Compose the configuration that the stage's trainer will run with.

        Raises:
            UserError: hydra rejects an override.
        """
        try:
            return composed(self.configuration, self.command(node, context, 1).argv[3:])
        except UserError as error:
            raise UserError(f"{node.name}: {error.problem}", key=error.key, remedy=error.remedy) from error

    @abstractmethod
    def demand(self, settings: Mapping[str, Any], longest: int) -> Training:
        """Read engines, batches and frozen models from the composed configuration.

        Args:
            settings: verl's configuration, resolved.
            longest: maximal tokens of a sequence, prompt and response.
        """

    @abstractmethod
    def updates_per_step(self, node: Node) -> float:
        """Count the optimizer updates per step."""

    @abstractmethod
    def response_tokens(self, node: Node) -> int:
        """Return the maximal length of a response."""

    def gpus(self, node: Node, cluster: Cluster) -> tuple[int, int]:
        """Return the nodes that the trained model has, and its GPUs on each."""
        return cluster.nodes, cluster.gpus_per_node

    def mean_response_tokens(self, node: Node) -> float:
        """Return the maximal length of a response, averaged over the stage's steps."""
        return self.response_tokens(node)

    def common_overrides(self, node: Node, context: Context, steps: int | None) -> dict[str, Any]:
        """Set the keys of every trainer: model, steps, checkpoints, machine.

        Args:
            steps: number of steps; None where a budget decides.
        """
        directory = context.directory(node)
        nodes, per_node = self.gpus(node, context.cluster)
        return {
            f"{self.model_section}.path": model_location(node, "model", context),
            f"{self.model_section}.trust_remote_code": trusts_remote_code(node, "model"),
            "trainer.total_training_steps": steps,
            "trainer.default_local_dir": str(directory / "checkpoints"),
            "trainer.resume_mode": "auto",
            "trainer.save_freq": node.operations["save_every"],
            "trainer.n_gpus_per_node": per_node,
            "trainer.nnodes": nodes,
            "hydra.run.dir": str(directory / "hydra"),
        }

    def adjusted_overrides(self, node: Node) -> dict[str, Any]:
        """Complete keys that a recipe may set: loggers and checkpoints to keep."""
        named = {"project": node.operations["project"], "run": node.name}
        loggers = logger_overrides(merged_verl(node), node.operations["trackers"], **named)
        return {**loggers, self.keep_key: kept(node, self.keep_key)}

    def logger_environment(self, node: Node, context: Context, attempt: int) -> dict[str, str]:
        """Say where verl's loggers write the metrics of an attempt."""
        trackers = tracker_environment(self.adjusted_overrides(node), context.run_dir / "tensorboard" / node.name)
        return {"VERL_FILE_LOGGER_PATH": str(metrics_file(context.directory(node), attempt)), **trackers}

    def prepare_resume(self, node: Node, directory: Path, cluster: Cluster, note: Callable[[str], None]) -> None:
        saved = directory / "checkpoints"
        checkpoints.repair(saved)
        for problem in checkpoints.set_aside_damaged(saved):
            note(f"{node.name} resumes from an older checkpoint: {problem}")
        checkpoints.thin_out(saved, kept(node, self.keep_key))
        wrote = checkpoints.world_size(saved)
        if wrote is not None and wrote != math.prod(self.gpus(node, cluster)):
            raise StageFailed(
                f"{node.name} was interrupted with checkpoints of {wrote} processes, which only {wrote} can read; "
                f"set cluster.nodes x cluster.gpus_per_node to {wrote}, or delete {saved} to start the stage again.",
                log=directory / "log.txt",
            )

    def finalize(self, node: Node, directory: Path) -> None:
        if hand_off_best(node, directory):
            return
        steps = last_step(node, directory)
        if steps is None:
            raise StageFailed(f"{node.name} ended before it had spent its budget.", log=directory / "log.txt")
        hand_off(node, directory, steps)

    def finished_before(self, node: Node, directory: Path) -> bool:
        steps = last_step(node, directory)
        return steps is not None and finished(node, directory, steps)

    def clean(self, directory: Path) -> None:
        checkpoints.delete(directory)

    def end(self, node: Node, directory: Path) -> Mapping[str, Any]:
        if (stopped := early_stop.read(directory)) is not None:
            return {"stopped": stopped}
        if (early := ended_early(node, directory)) is None or "matched" in node.settings:
            return {}
        return {"until": {"step": early[0], "reason": early[1]}}

    def total_steps(self, node: Node) -> int | None:
        return node.settings["steps"]

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        """Count labels, verifier calls, updates, and the metrics that name a ledger item.

        Steps that an alarm discarded count: they were paid for. Verifier calls are counted in every stage, so that an
        unintended call shows.
        """
        steps, metrics = early_stop.steps_done(directory) or last_step(node, directory), read_metrics(directory)
        summed = {
            metric.ledger: sum_over_steps(metrics, steps, lambda data, key=metric.key: data.get(key))
            for metric in self.metrics
            if metric.ledger is not None
        }
        updates = round(steps * self.updates_per_step(node))
        return empty_ledger(seconds) | summed | verifier_calls(directory) | {"updates": updates}
