"""What the two kinds that only sample have in common: rollouts and evaluation."""

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
        section: of a recipe that has its settings.
        scored: whether a verifier scores every sample.
    """

    section: ClassVar[str]
    scored: ClassVar[bool] = False

    @abstractmethod
    def response_tokens(self, node: Node) -> int:
        """Length of a response at most."""

    @abstractmethod
    def sequences(self, node: Node, problems: int | None) -> int | None:
        """Count the responses it samples.

        Args:
            problems: that it samples from, None where not known.
        """

    def arguments(self, node: Node, context: Context) -> dict[str, Any]:
        """Those that both modules take."""
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
        """The parts of a process that was killed while it removed them."""
        shutil.rmtree(directory / PARTS, ignore_errors=True)


def content(node: Node, role: str, context: Context) -> str | None:
    """Digest of a model's content as far as the run has it already; None for hub models, and before there is one."""
    if role in node.externals:
        external = node.externals[role]
        return None if external.is_hub else external.identity
    manifest = read_manifest(context.directory(node.inputs[role]))
    outputs = manifest["outputs"] if manifest else []
    if not outputs or not all("sha256" in output for output in outputs):
        return None
    return f"outputs:{hashlib.sha256(canonical_json(outputs).encode()).hexdigest()}"


def engine(node: Node) -> dict[str, Any]:
    """Arguments of vLLM's LLM that the recipe gives, decisive and operational."""
    return {**node.settings.get("engine", {}), **node.operations["engine"]}


def replicas(node: Node, context: Context) -> int:
    """Engines that share the stage's work: as many as the machine's GPUs hold. On a CPU they would share its cores."""
    if context.device == "cpu":
        return 1
    return max(1, context.cluster.gpus_per_node // node.operations["tensor_parallel_size"])
