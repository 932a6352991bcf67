"""Run stage 2a: warm up the student on cached teacher rollouts, by default with the forward KL."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from verl_s2d.metrics.metric_table import Metric
from verl_s2d.signals.top_k_kl import STORED
from verl_s2d.stages.shared import panels
from verl_s2d.stages.shared.budget import UNTIL, length
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.stages.shared.problem_weights import RESERVED_WEIGHTS, weights_overrides
from verl_s2d.stages.shared.signal_settings import RESERVED, frozen_of_node, signal_overrides, words
from verl_s2d.stages.shared.training_stage import MODEL, SEED, SLICE, TRUST, TrainingStage
from verl_s2d.verl_settings.composed import WARMUP
from verl_s2d.verl_settings.from_verl import read_warmup
from verl_s2d.verl_settings.overrides import hydra_arguments, merge
from verl_s2d.verl_settings.stage_sizes import Training
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Command, Context


class Warmup(TrainingStage):
    """Trains the student on cached teacher rollouts towards the teacher's whole distribution.

    It uses no rollout server, no verifier and no answers.
    """

    kind = "warmup"
    symbol = "2a"
    semantics = 2
    default_signal = "forward_kl"
    configuration = WARMUP
    keep_key = "trainer.max_ckpt_to_keep"
    model_section = "model"
    consumes = ("updates",)
    metrics = (
        Metric("train/forward_kl", panels.FORWARD_KL, alarm="kl_blow_up", live="forward KL {:.3f}"),
        Metric("train/top1_agreement", panels.AGREEMENT, "same likeliest token"),
        Metric("train/student_mass_on_teacher_top", panels.MASS, "the student's"),
        Metric("train/teacher_mass_on_own_top", panels.MASS, "the teacher's on its own"),
        Metric("train/loss", panels.DISTILLATION_LOSS, alarm="loss_spike"),
        Metric("train/student_entropy", panels.DISTILLATION_ENTROPY, "student", alarm="entropy_collapse"),
        Metric("train/teacher_entropy", panels.DISTILLATION_ENTROPY, "teacher"),
        Metric("train/grad_norm", panels.GRAD_NORM, alarm="no_signal"),
        Metric("train/teacher_scored_tokens", ledger="teacher_scored_tokens"),
    )
    reserved = (
        TrainingStage.reserved
        | RESERVED
        | RESERVED_WEIGHTS
        | {
            "model.path": MODEL,
            "model.trust_remote_code": TRUST,
            "data.train_files": SLICE,
            "trainer.seed": SEED,
        }
    )

    def command(self, node: Node, context: Context, attempt: int) -> Command:
        overrides = merge(merged_verl(node), self.overrides(node, context), self.adjusted_overrides(node))
        argv = [sys.executable, "-m", "verl_s2d.stages.warmup.trainer", *hydra_arguments(overrides)]
        return Command(argv, self.logger_environment(node, context, attempt))

    def overrides(self, node: Node, context: Context) -> dict[str, Any]:
        """Set the reserved keys."""
        files = [str(context.directory(cache) / "rollouts.parquet") for cache in caches_of(node)]
        return {
            **self.common_overrides(node, context, node.settings["steps"]),
            **{_declared(key): value for key, value in signal_overrides(node, context).items()},
            **weights_overrides(node, context),
            "s2d.save_minutes": node.operations["save_minutes"],
            **({"s2d.until": node.settings[UNTIL]} if UNTIL in node.settings else {}),
            "data.train_files": files[0] if len(files) == 1 else files,
            "trainer.seed": node.settings["seed"],
        }

    def frozen_roles(self, node: Node) -> tuple[str, ...]:
        return frozen_of_node(node, STORED)

    def demand(self, settings: Mapping[str, Any], longest: int) -> Training:
        section = settings["s2d"]
        return read_warmup(settings, longest, teacher=bool(section["models"] or section["teacher"]["path"]))

    def response_tokens(self, node: Node) -> int:
        return caches_of(node)[0].settings["response_tokens"]

    def updates_per_step(self, node: Node) -> float:
        return 1

    def describe(self, node: Node) -> str:
        return f"{words(node)} to the teacher on its cached rollouts, {length(node)}"


def caches_of(node: Node) -> list[Node]:
    """List the caches of rollouts that a warmup reads: one of each teacher."""
    return [source for role, source in node.inputs.items() if role.partition(".")[0] == "rollouts"]


def _declared(key: str) -> str:
    """Strip hydra's `+` from keys that s2d_warmup.yaml declares: those of the teacher's section."""
    return key.removeprefix("+") if key.startswith("+s2d.teacher.") else key
