"""Stage 2a (kind `warmup`) and the cache of teacher rollouts it trains on (kind `rollouts`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from verl_s2d.stages.shared import checkpoints, early_stop
from verl_s2d.stages.shared.budget import length
from verl_s2d.stages.shared.sampling_stage import SamplingKind
from verl_s2d.stages.shared.verl_trainer import log_backends
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, plain_arguments, value_of
from verl_s2d.workflow.failures import StageFailed
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger, empty_ledger, sum_over_steps
from verl_s2d.workflow.stage import Command, Context, merged_verl, metrics_file, model_location, trusts_remote_code
from verl_s2d.workflow.watch.metric_logs import read_metrics


class Rollouts(SamplingKind):
    """Samples of the teacher, as many as the warmup reads or so many a prompt, through vLLM, into one parquet."""

    required_files = ("rollouts.parquet", "rollouts.json")
    consumes = ("sampled_tokens",)

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        s = node.settings
        arguments = {
            **self.arguments(node, context),
            "data": str(context.directory(node.inputs["slices"]) / f"{s['slice']}-prompts.parquet"),
            "n": s.get("per_prompt"),
            "rows": s.get("rows"),
            "top_k": s["top_k"],
            "max_tokens": s["response_tokens"],
        }
        env = {"VERL_FILE_LOGGER_PATH": str(metrics_file(context.directory(node), attempt))}
        argv = [sys.executable, "-m", "verl_s2d.stages.rollouts.rollout_cache", *plain_arguments(arguments)]
        return Command(argv, env)

    def finalize(self, node: Node, directory: Path) -> None:
        super().finalize(node, directory)
        self._sampled_tokens(node, directory)

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        return empty_ledger(seconds) | {"sampled_tokens": self._sampled_tokens(node, directory)}

    def _sampled_tokens(self, node: Node, directory: Path) -> int:
        path = directory / "rollouts.json"
        try:
            return int(json.loads(path.read_text())["counts"]["sampled_tokens"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StageFailed(
                f"{path} does not say how many tokens were sampled.", log=directory / "log.txt"
            ) from error

    def describe(self, node: Node) -> str:
        s = node.settings
        sampled = f"{s['rows']:,} teacher rollouts" if "rows" in s else f"{s['per_prompt']} teacher rollouts a prompt"
        return f"{sampled} of slice {s['slice']}, temperature {s['temperature']:g}"


class Warmup:
    """Forward KL to the teacher's distribution on its cached rollouts. No rollout server, no verifier, no answers."""

    semantics = 1
    needs_ray = True
    consumes = ("updates",)

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        directory, s = context.directory(node), node.settings
        chosen = merged_verl(node)
        computed: dict[str, Any] = {
            "model.path": model_location(node, "model", context),
            "model.trust_remote_code": trusts_remote_code(node, "model"),
            "s2d.teacher.path": model_location(node, "teacher", context),
            "s2d.teacher.trust_remote_code": trusts_remote_code(node, "teacher"),
            "s2d.objective": s["objective"],
            "data.train_files": str(context.directory(node.inputs["rollouts"]) / "rollouts.parquet"),
            "trainer.total_training_steps": s["steps"],
            "trainer.default_local_dir": str(directory / "checkpoints"),
            "trainer.resume_mode": "auto",
            "trainer.save_freq": node.operations["save_every"],
            checkpoints.KEEP_KEYS[node.kind]: checkpoints.kept(node),
            "s2d.save_minutes": node.operations["save_minutes"],
            "trainer.logger": log_backends(value_of(chosen, "trainer.logger")),
            "trainer.seed": s["seed"],
            "trainer.n_gpus_per_node": context.cluster.gpus_per_node,
            "trainer.nnodes": context.cluster.nodes,
            "hydra.run.dir": str(directory / "hydra"),
        }
        env = {"VERL_FILE_LOGGER_PATH": str(metrics_file(directory, attempt))}
        argv = [sys.executable, "-m", "verl_s2d.stages.warmup.trainer", *hydra_arguments(merge(chosen, computed))]
        return Command(argv, env)

    def finalize(self, node: Node, directory: Path) -> None:
        if not early_stop.settle(node, directory):
            checkpoints.hand_off(node, directory, node.settings["steps"])

    def finished_before(self, node: Node, directory: Path) -> bool:
        return checkpoints.finished(node, directory, node.settings["steps"])

    def clean(self, directory: Path) -> None:
        checkpoints.delete(directory)

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        steps = early_stop.steps_done(directory) or node.settings["steps"]
        scored = sum_over_steps(read_metrics(directory), steps, lambda data: data.get("train/teacher_scored_tokens"))
        return empty_ledger(seconds) | {"teacher_scored_tokens": scored, "updates": steps}

    def updates_per_step(self, node: Node) -> float:
        return 1

    def describe(self, node: Node) -> str:
        return f"forward KL to the teacher on its cached rollouts, {length(node)}"

    def total_steps(self, node: Node) -> int | None:
        return node.settings["steps"]
