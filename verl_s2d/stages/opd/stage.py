"""Run stage 2b: on-policy distillation."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from verl_s2d.metrics.metric_table import Metric
from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.recipe.servers import gpus_left
from verl_s2d.recipe.stage_settings import Prefix
from verl_s2d.signals.signal_registry import is_loss
from verl_s2d.stages.prepare.prompt_pool import PromptPool
from verl_s2d.stages.prepare.stage import slice_of
from verl_s2d.stages.shared import panels
from verl_s2d.stages.shared.budget import length
from verl_s2d.stages.shared.node_settings import VERIFIER_RESERVED, verifier_overrides
from verl_s2d.stages.shared.problem_weights import RESERVED_WEIGHTS, weights_overrides
from verl_s2d.stages.shared.signal_settings import (
    RESERVED,
    frozen_of_node,
    servers_of_node,
    signal_overrides,
    words,
)
from verl_s2d.stages.shared.training_stage import STAGE
from verl_s2d.stages.shared.verl_trainer import THROUGHPUT, UNSCORED, VerlTrainerStage
from verl_s2d.verl_settings.from_verl import read_rl
from verl_s2d.verl_settings.overrides import without_interpolation
from verl_s2d.verl_settings.stage_sizes import Training
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Context

SERVERS = "Set stages.opd.servers: the cluster's GPUs are divided between servers and student."


class Opd(VerlTrainerStage):
    """Trains the student on its own rollouts with the teacher as reward: prompts without answers, no verifier."""

    kind = "opd"
    symbol = "2b"
    semantics = 2
    default_signal = "sampled"
    reads_answers = False
    consumes = ("sampled_tokens", "updates")
    metrics = (
        Metric("s2d/reverse_kl", panels.REVERSE_KL, alarm="kl_blow_up", live="reverse KL {:.3f}"),
        Metric("s2d/jsd", panels.JSD, live="JSD {:.3f}"),
        Metric("s2d/forward_kl", panels.FORWARD_KL, live="forward KL {:.3f}"),
        Metric("s2d/top1_agreement", panels.AGREEMENT, "same likeliest token"),
        Metric("s2d/overlap_ratio", panels.AGREEMENT, "overlap of the top k", alarm="overlap"),
        Metric("s2d/parse_rate", panels.PARSE_RATE, alarm="overlap"),
        *(Metric(f"s2d/overlap_q{quarter}", panels.OVERLAP, f"quarter {quarter}") for quarter in range(1, 5)),
        Metric("s2d/teacher_mass_on_student_top", panels.MASS, "the teacher's"),
        Metric("s2d/student_mass_on_teacher_top", panels.MASS, "the student's"),
        Metric("s2d/student_mass_on_both", panels.MASS, "the student's on both"),
        Metric("s2d/reverse_kl_on_both", panels.KL_BY_SET, "in both top k"),
        Metric("s2d/reverse_kl_on_student_only", panels.KL_BY_SET, "only in the student's"),
        Metric("s2d/reverse_kl_on_teacher_only", panels.KL_BY_SET, "only in the teacher's"),
        Metric("s2d/travel", panels.TRAVEL, alarm="travel"),
        Metric("s2d/teacher_mass_on_own_top", panels.MASS, "the teacher's on its own"),
        Metric("actor/loss", panels.DISTILLATION_LOSS, alarm="loss_spike"),
        Metric("s2d/student_entropy", panels.DISTILLATION_ENTROPY, "student", alarm="entropy_collapse"),
        Metric("s2d/teacher_entropy", panels.DISTILLATION_ENTROPY, "teacher"),
        Metric("response_length/mean", panels.LENGTH, alarm="length_explosion"),
        Metric("s2d/prefix_tokens", panels.LENGTH, "limit of the prefix"),
        Metric(panels.TRUNCATED.name, panels.TRUNCATED, alarm="truncation"),
        Metric("actor/grad_norm", panels.GRAD_NORM, alarm="no_signal"),
        Metric("s2d/sampled_tokens", ledger="sampled_tokens"),
        Metric("s2d/teacher_scored_tokens", ledger="teacher_scored_tokens"),
        THROUGHPUT,
    )
    reserved = (
        VerlTrainerStage.reserved
        | RESERVED
        | RESERVED_WEIGHTS
        | VERIFIER_RESERVED
        | {
            "algorithm.adv_estimator": "Set stages.opd.signal.",
            "s2d.prefix": "Set stages.opd.prefix.",
            "s2d.teacher.placement": SERVERS,
            "s2d.teacher.server": SERVERS,
            "s2d.teacher_prompt": "Set stages.opd.teacher_prompt.",
            "s2d.label_ledger": STAGE,
            "s2d.prompt_ledger": STAGE,
            "s2d.teacher_refresh": "Set stages.opd.teacher_refresh.",
            "s2d.travel": "Set stages.opd.travel.",
            "s2d.parse_rate": "Leave it out: it is measured wherever `verifier:` extracts answers without a label.",
        }
    )

    def own_overrides(self, node: Node, context: Context) -> Mapping[str, Any]:
        return {
            "trainer.v1.trainer_mode": "s2d_opd",
            "algorithm.adv_estimator": "s2d_opd",
            **signal_overrides(node, context),
            **self.prompt_overrides(node, context),
            **({"+s2d.teacher_refresh": every} if (every := node.settings.get("teacher_refresh")) else {}),
            **({"+s2d.travel": True} if node.operations.get("travel") else {}),
            **({"+s2d.parse_rate": parsed} if (parsed := node.operations.get("parse_rate")) is not None else {}),
            **weights_overrides(node, context),
            **self.ledger_overrides(node, context),
            **{f"+s2d.prefix.{name}": value for name, value in node.settings.get("prefix", {}).items()},
        }

    def ledger_overrides(self, node: Node, context: Context) -> Mapping[str, Any]:
        """Enter prompts without labels in the node's ledger, if its slice has some."""
        if not isinstance(node.inputs["slices"].stage, PromptPool):
            return {}
        return {"+s2d.prompt_ledger": str(context.directory(node) / "verifier")}

    def gpus(self, node: Node, cluster: Cluster) -> tuple[int, int]:
        return gpus_left(cluster, servers_of_node(node).values(), "stages.opd.servers")

    def prompt_overrides(self, node: Node, context: Context) -> Mapping[str, Any]:
        """Set the keys of the teacher's own prompt, if it has one."""
        prompt = node.settings.get("teacher_prompt")
        return {} if prompt is None else {"+s2d.teacher_prompt": without_interpolation(prompt)}

    def frozen_roles(self, node: Node) -> tuple[str, ...]:
        start = ("model",) if node.operations.get("travel") else ()
        return (*frozen_of_node(node), *start)

    def demand(self, settings: Mapping[str, Any], longest: int) -> Training:
        section = settings.get("s2d", {})
        exact = is_loss(section.get("signal") or {}, default=self.default_signal)
        models = [*(section.get("models") or {}).values(), *filter(None, [section.get("teacher")])]
        # A model on servers needs nothing of the student's GPUs.
        asked = bool(section.get("travel")) or any(model.get("placement") != "server" for model in models)
        return read_rl(settings, longest, teacher=asked, exact=exact)

    def mean_response_tokens(self, node: Node) -> float:
        longest, steps = self.response_tokens(node), node.settings["steps"]
        if steps is None or "prefix" not in node.settings:
            return longest
        prefix = Prefix(**node.settings["prefix"])
        return fmean(min(prefix.tokens(step), longest) for step in range(1, steps + 1))

    def describe(self, node: Node) -> str:
        prompt = ", a prompt of the teacher's own" if "teacher_prompt" in node.settings else ""
        return f"on-policy distillation on prompts of slice {slice_of(node)}, {words(node)}{prompt}, {length(node)}"


class ScoredOpd(Opd):
    """Stage 2b with a signal that reads scores: problems with answers, and every verifier call in the ledger."""

    reads_answers = True
    consumes = ("labels", "verifier_calls", *Opd.consumes)
    metrics = (*Opd.metrics, Metric("critic/score/mean", alarm="score_collapse", live="score {:.3f}"), *UNSCORED)

    def own_overrides(self, node: Node, context: Context) -> Mapping[str, Any]:
        return {**super().own_overrides(node, context), **verifier_overrides(node, context)}

    def describe(self, node: Node) -> str:
        verifier = node.settings["verifier"]
        return (
            f"on-policy distillation on slice {slice_of(node)} with verifier {verifier}, {words(node)}, {length(node)}"
        )


class PrivilegedOpd(Opd):
    """Stage 2b with a teacher whose prompt holds columns of the problem: these are labels, which the ledger counts."""

    consumes = ("labels", *Opd.consumes)
    reads_answers = True

    def prompt_overrides(self, node: Node, context: Context) -> Mapping[str, Any]:
        ledger = str(context.directory(node) / "verifier")
        return {**super().prompt_overrides(node, context), "+s2d.label_ledger": ledger}
