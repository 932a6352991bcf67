"""Write part `summary`: one line per part, and the hours of a recipe at the measured speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_settings import Settings


def run(settings: Settings, record: Recorder) -> None:
    """Summarise the report so far, then estimate the recipe's hours."""
    path = settings.scratch / "report.json"
    if not path.exists():
        record.skip("summary", "no other part was run")
        return
    parts = json.loads(path.read_text())["parts"]
    for part in parts:
        counts = {state: sum(c["state"] == state for c in part["checks"]) for state in ("ok", "failed", "skipped")}
        text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        record.figure(part["name"], f"{part['state']}: {text} in {part['seconds']:.0f} s")
    if settings.recipe is None:
        record.skip("hours of a recipe", "no --recipe was given")
        return
    _hours(settings, record, parts)


def _hours(settings: Settings, record: Recorder, parts: list[dict[str, Any]]) -> None:
    """Bound the GPU-hours, with every response at its maximum length: the plan's FLOPs at this machine's speed."""
    from verl_s2d.checks.sized_plan import sized
    from verl_s2d.recipe.load import load_recipe
    from verl_s2d.report.views import plan_view
    from verl_s2d.sizing.cost import PASS_MFU, SAMPLING_MFU
    from verl_s2d.stages.planning import make_plan

    plan = make_plan(load_recipe(Path(settings.recipe)))
    total = sized(plan, plan_view(plan))["sizes"]["total"]
    record.figure("recipe", f"{plan.recipe.name}, {len(plan.order)} stages")
    products = [c["value"] for c in _checks(parts, "gemms") if c["figure"].endswith("TFLOP/s")]
    if not products:
        record.skip("GPU-hours by FLOPs", "part gemms was not run")
    elif total["pass_flops"] is None or total["sampling_flops"] is None:
        record.skip("GPU-hours by FLOPs", "the shape of a model is not known yet")
    else:
        peak = max(products) * 1e12
        hours = (total["pass_flops"] / PASS_MFU + total["sampling_flops"] / SAMPLING_MFU) / peak / 3600
        shares = f"assumed: {PASS_MFU:.0%} of the fastest product here in passes, {SAMPLING_MFU:.0%} in sampling"
        record.figure(f"GPU-hours by FLOPs, at most ({shares})", hours, "h")
    _sampling_hours(settings, record, parts, total["sampled_tokens"])


def _sampling_hours(settings: Settings, record: Recorder, parts: list[dict[str, Any]], tokens: int | None) -> None:
    speeds = [c["value"] for c in _checks(parts, "vllm") if c["name"] == "speed"]
    if settings.model is None:
        # The speed of a random model of a few layers does not predict that of a real one.
        record.skip("GPU-hours of sampling", "needs --model, a model of the recipe's size")
    elif not speeds or tokens is None:
        record.skip("GPU-hours of sampling", "part vllm was not run, or the tokens are not known yet")
    else:
        hours = tokens / speeds[0] / 3600
        record.figure("GPU-hours of sampling, at most, if every token came from --model", hours, "h")


def _checks(parts: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [check for part in parts if part["name"] == name for check in part["checks"]]
