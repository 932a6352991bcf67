"""Run stages 1 and 3: GRPO on the teacher or on the student, with the verifier's reward and, in 3, a credit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.metrics.metric_table import Metric
from verl_s2d.recipe.until import TRAVEL
from verl_s2d.stages.grpo.credit_of_node import CREDIT, CREDIT_RESERVED, credit_overrides, credit_words
from verl_s2d.stages.prepare.stage import slice_of, validation_file
from verl_s2d.stages.shared import panels
from verl_s2d.stages.shared.batch_settings import N, batch_setting, sequences_per_step
from verl_s2d.stages.shared.budget import UNTIL, last_step, length
from verl_s2d.stages.shared.node_settings import VERIFIER_RESERVED, verifier_overrides
from verl_s2d.stages.shared.verl_trainer import DROPPED_GROUPS, THROUGHPUT, UNSCORED, VerlTrainerStage
from verl_s2d.teachers.router import TEACHER
from verl_s2d.verl_settings.from_verl import read_rl
from verl_s2d.verl_settings.stage_sizes import Training
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import Ledger, sum_over_steps
from verl_s2d.workflow.stage import Context
from verl_s2d.workflow.watch import early_stop


class Grpo(VerlTrainerStage):
    """GRPO on labelled problems. Every verifier call is entered in the ledger."""

    kind = "grpo"
    symbol = "RL"
    consumes = ("labels", "verifier_calls", "sampled_tokens", "updates")
    metrics = (
        Metric("critic/score/mean", panels.SCORE, alarm="score_collapse", live="score {:.3f}"),
        Metric("critic/score/mean", alarm="no_signal"),
        Metric("critic/advantages/max", alarm="no_signal"),
        Metric("actor/kl_loss", panels.POLICY_KL, alarm="kl_blow_up"),
        Metric("actor/ppo_kl", alarm="kl_blow_up"),
        Metric("s2d/reverse_kl", panels.POLICY_KL, "to the teacher", alarm="kl_blow_up", live="reverse KL {:.3f}"),
        Metric("actor/loss", panels.RL_LOSS, alarm="loss_spike"),
        Metric("actor/entropy", panels.RL_ENTROPY, alarm="entropy_collapse"),
        Metric("response_length/mean", panels.LENGTH, alarm="length_explosion"),
        Metric(panels.TRUNCATED.name, panels.TRUNCATED, alarm="truncation"),
        Metric("actor/grad_norm", panels.GRAD_NORM),
        Metric("s2d/travel", panels.TRAVEL),
        *UNSCORED,
        THROUGHPUT,
    )
    reserved = VerlTrainerStage.reserved | CREDIT_RESERVED | VERIFIER_RESERVED

    def own_overrides(self, node: Node, context: Context) -> Mapping[str, Any]:
        validation: dict[str, Any] = {}
        if "validate_every" in node.settings:
            validation["data.val_files"] = validation_file(node, context)
            validation["trainer.test_freq"] = node.settings["validate_every"]
        return {
            "trainer.v1.trainer_mode": "s2d_grpo",
            **validation,
            **verifier_overrides(node, context),
            **credit_overrides(node, context),
        }

    def frozen_roles(self, node: Node) -> tuple[str, ...]:
        if CREDIT in node.settings:
            return (TEACHER,)
        return ("model",) if TRAVEL in node.settings.get(UNTIL, ()) else ()

    def ledger(self, node: Node, directory: Path, seconds: float) -> Ledger:
        """Count as every training stage, with sampled tokens from the mean response length, all that verl logs.

        Dropped groups were sampled too, at about that length. A credit's teacher scores the others.
        """
        steps, metrics = early_stop.steps_done(directory) or last_step(node, directory), read_metrics(directory)

        def of_responses(count: Callable[[Mapping[str, Any]], int]) -> int:
            def of_step(data: Mapping[str, Any]) -> float | None:
                mean = data.get("response_length/mean")
                return None if mean is None else round(mean * count(data))

            return sum_over_steps(metrics, steps, of_step)

        kept, group = sequences_per_step(node), batch_setting(node, N)
        sampled = of_responses(lambda data: kept + round(group * data.get(DROPPED_GROUPS, 0)))
        scored = {"teacher_scored_tokens": of_responses(lambda data: kept)} if CREDIT in node.settings else {}
        return super().ledger(node, directory, seconds) | {"sampled_tokens": sampled} | scored

    def demand(self, settings: Mapping[str, Any], longest: int) -> Training:
        section = settings.get("s2d") or {}
        asked = bool(section.get("credit")) or TRAVEL in (section.get("until") or {})
        return read_rl(settings, longest, teacher=asked)

    def describe(self, node: Node) -> str:
        s = node.settings
        return f"GRPO on slice {slice_of(node)} with verifier {s['verifier']}{credit_words(node)} {length(node)}"
