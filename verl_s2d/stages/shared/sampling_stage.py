"""Run the stages that only sample: rollouts and evaluation."""

from __future__ import annotations

import hashlib
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from verl_s2d.sampling import PARTS
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node, canonical_json
from verl_s2d.workflow.stage import Context, Stage, model_location, trusts_remote_code
from verl_s2d.workflow.store.manifest import read_manifest


class SamplingStage(Stage):
    """A stage that resumes from the shards it has: its result is in place once its last file is.

    Attributes:
        section: section of a recipe with the stage's settings.
        scored: a verifier scores every sample.
    """

    section: ClassVar[str]
    scored: ClassVar[bool] = False

    @abstractmethod
    def response_tokens(self, node: Node) -> int:
        """Return the maximal length of a response."""

    @abstractmethod
    def sequences(self, node: Node, problems: int | None) -> int | None:
        """Count the responses that the stage samples.

        Args:
            problems: number of prompts; None when it is not known.
        """

    def needs_ray(self, context: Context) -> bool:
        """Report whether engines are Ray actors: on GPUs. The one engine on a CPU works in the stage's process."""
        return context.device != "cpu"

    def arguments(self, node: Node, context: Context) -> dict[str, Any]:
        """Build the arguments that both modules take."""
        return {
            "model": model_location(node, "model", context),
            "weights": content(node, "model", context),
            "trust_remote_code": trusts_remote_code(node, "model"),
            "out": str(context.directory(node)),
            "replicas": replicas(node, context),
            "device": context.device,
            "tensor_parallel_size": node.operations["tensor_parallel_size"],
            **{key: node.settings[key] for key in ("temperature", "top_p", "seed")},
            **{f"engine.{name}": value for name, value in engine(node).items()},
            **{f"chat_template.{name}": value for name, value in node.settings["chat_template"].items()},
        }

    def finished_before(self, node: Node, directory: Path) -> bool:
        try:
            self.finalize(node, directory)
        except StageFailed:
            return False
        return True

    def clean(self, directory: Path) -> None:
        """Delete the parts that a killed process left."""
        shutil.rmtree(directory / PARTS, ignore_errors=True)


def content(node: Node, role: str, context: Context) -> str | None:
    """Return the digest of a model's content if the run has it; None for hub models and unfinished stages."""
    if role in node.externals:
        external = node.externals[role]
        return None if external.is_hub else external.identity
    manifest = read_manifest(context.directory(node.inputs[role]))
    outputs = manifest["outputs"] if manifest else []
    if not outputs or not all("sha256" in output for output in outputs):
        return None
    return f"outputs:{hashlib.sha256(canonical_json(outputs).encode()).hexdigest()}"


def engine(node: Node) -> dict[str, Any]:
    """Merge the recipe's arguments of vLLM's LLM, decisive and operational."""
    return {**node.settings.get("engine", {}), **node.operations["engine"]}


def replicas(node: Node, context: Context) -> int:
    """Count the engines that share the stage's work: as many as fit on the GPUs of all nodes, each on one node.

    One on a CPU, to keep all cores.
    """
    if context.device == "cpu":
        return 1
    cluster = context.cluster
    return max(1, cluster.nodes * (cluster.gpus_per_node // node.operations["tensor_parallel_size"]))
