"""Run `verl-s2d check --self-test`: one step of stage 2b in the real engines, with the student as its own teacher.

If teacher and student are the same model, the divergence and every advantage have to be zero; otherwise the two engines
disagree about the same weights. The step also measures the difference between the log-probabilities of the rollout
engine (vLLM) and the training engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.checks.finding import Finding
from verl_s2d.errors import UserError
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.stages.builder import Builder
from verl_s2d.workflow.hosts.process import Launcher
from verl_s2d.workflow.plan import Plan, Row
from verl_s2d.workflow.progress import Progress
from verl_s2d.workflow.runner import run_plan

LIMIT, LIMIT_LOW_PRECISION = 1e-4, 1e-2
"""Limits on the mean divergence (nats per token) and the 99.9th percentile of |A|: in the CPU platform's float32, and
elsewhere, where engines compute in bfloat16 and batch differently; the second limit is our choice. The largest |A| has
no limit, because rounding moves the log-prob of a single unlikely token by more."""
_DRIFT = {
    "rollout_corr/kl": ("mean KL", "nats per token", 0.01),
    "training/rollout_probs_diff_mean": ("probabilities of sampled tokens differ on average by", "", 0.01),
    "training/rollout_probs_diff_max": ("at most by", "", 0.5),
}
"""verl's metrics that compare the two engines: name -> (description, unit, value above which to warn)."""


def self_test(plan: Plan, progress: Progress, launcher: Launcher | None = None) -> list[Finding]:
    """Run the step with the recipe's own sizes and signal of stage 2b, which takes minutes of engine start-up.

    Runs the student's script first, if it has one. Later calls read the result of the first.

    Raises:
        UserError: the recipe has no stage 2b.
    """
    if plan.recipe.stages.opd is None:
        raise UserError("The self-test is a step of stage 2b.", key="stages.opd", remedy="Add `opd:` under stages.")
    test = _plan(plan)
    failures = run_plan(test, progress, launcher=launcher)
    if failures:
        return [Finding("teacher = student", False, str(failures[0]))]
    metrics = read_metrics(test.context.directory(test.rows[0].target)).get(1, {})
    return [_same_model(metrics, LIMIT if plan.context.device == "cpu" else LIMIT_LOW_PRECISION), _drift(metrics)]


def _plan(plan: Plan) -> Plan:
    recipe, seed = plan.recipe, plan.rows[0].seed
    verl = {**recipe.stages.opd.verl, "actor_rollout_ref.rollout.calculate_log_probs": True}
    opd = recipe.stages.opd.model_copy(update={"steps": 1, "until": None, "save_every": 1, "verl": verl, "alarms": {}})
    recipe = recipe.model_copy(update={"stages": recipe.stages.model_copy(update={"opd": opd})})
    builder = Builder(recipe, "self-test", seed, plan.context.device, {})
    target = builder.opd(builder.model("student"), builder.model("student"), "1h", of="self-test")
    return Plan(recipe, [Row("self-test", seed, target)], plan.context)


def _same_model(metrics: Mapping[str, Any], limit: float) -> Finding:
    what, kl = "teacher = student", metrics.get("s2d/reverse_kl")
    if kl is None:
        return Finding(what, False, "the step logged no divergence")
    most = metrics.get("s2d/advantage_p99.9") or 0.0
    largest = max(abs(metrics.get(f"critic/advantages/{end}") or 0.0) for end in ("min", "max"))
    detail = f"reverse KL {kl:.2g} nats per token, |A| up to {most:.2g} on 99.9 % of tokens, limit {limit:g}"
    detail += f" (largest |A| {largest:.2g})"
    ok = abs(kl) <= limit and most <= limit
    return Finding(what, ok, detail if ok else f"{detail}\nthe engines of teacher and student disagree about one model")


def _drift(metrics: Mapping[str, Any]) -> Finding:
    told, warnings = [], []
    for key, (what, unit, limit) in _DRIFT.items():
        value = metrics.get(key)
        if value is None:
            continue
        told.append(f"{what} {value:.2g} {unit}".rstrip())
        if abs(value) > limit:
            warnings.append(f"warning: {key} is above {limit:g}; see verl's rollout correction")
    detail = "\n".join([", ".join(told), *warnings]) if told else "verl logged no comparison"
    return Finding("rollout and training engine", bool(told), detail)
