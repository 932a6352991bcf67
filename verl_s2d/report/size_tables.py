"""Memory, cost and disk of a plan as text and tables."""

from __future__ import annotations

from typing import Any

from verl_s2d.report.table_text import Column, Table, words

_PHASES = ("loading", "rollout", "log-probs", "reference", "update", "weight sync")


def size_parts(view: dict[str, Any]) -> list[str | Table]:
    """Describe memory, cost and disk of the stages of `checks.sized_plan.sized`, and what does not fit."""
    stages, sizes = [stage for stage in view["stages"] if "cost" in stage], view["sizes"]
    parts: list[str | Table] = [""]
    if measured := [stage for stage in stages if stage["memory"] is not None]:
        parts += _memory(measured, sizes["gpu_memory_gib"])
    elif view["device"] == "cpu":
        parts.append("On a CPU memory is not estimated.")
    parts += ["", *_cost(stages, sizes), "", *_disk(stages, sizes["disk_gb"])]
    return [*parts, *(f"unknown: {why}" for why in sizes["unknown"]), *(f"note: {text}" for text in sizes["warnings"])]


def _memory(stages: list[dict[str, Any]], gpu: float) -> list[str | Table]:
    phases = [name for name in _PHASES if any(name in stage["memory"]["phases"] for stage in stages)]
    alike: dict[tuple[str, ...], list[str]] = {}
    for stage in stages:
        alike.setdefault(_memory_cells(stage["memory"], phases), []).append(stage["name"])
    names = (f"{name}, {len(others)} alike" if others else name for name, *others in alike.values())
    columns = [*words("stage", "verdict"), *map(Column, phases), *words("largest part")]
    columns += map(Column, ("at once", "in flight", "host"))
    lines = [(name, *cells) for name, cells in zip(names, alike, strict=True)]
    title = f"Memory of a GPU of {gpu:g} GiB (cluster.gpu_memory_gb), estimated for sequences of full length:"
    return [
        title,
        Table(title, columns, lines),
        "at once: sequences of full length in an engine's cache, times engines; in flight: at most this many sequences "
        "of any length in all engines; host: GiB offloaded on each node.",
        *(f"{s['name']} does not fit: {s['memory']['problem']}" for s in stages if s["memory"]["problem"]),
    ]


def _memory_cells(memory: dict[str, Any], phases: list[str]) -> tuple[str, ...]:
    """Cells after the stage's name; stages with equal ones share a line."""
    totals = {name: f"{sum(terms.values()):.1f}" for name, terms in memory["phases"].items()}
    terms, sampling = memory["phases"][memory["peak"]], memory.get("sampling")
    most = max(terms, key=terms.get)
    return (
        "does not fit" if memory["problem"] else "tight" if memory["tight"] else "fits",
        *(totals.get(name, "") for name in phases),
        f"{most} {terms[most]:.1f}",
        f"{sampling['sequences_at_once']} x {sampling['replicas']}" if sampling else "",
        f"{sampling['sequences_in_flight']:,}" if sampling else "",
        f"{memory['host_gib_per_node']:.0f}" if memory["host_gib_per_node"] else "",
    )


def _cost(stages: list[dict[str, Any]], sizes: dict[str, Any]) -> list[str | Table]:
    assumed = sizes["assumed"]
    on_gpus = assumed["gpu_tflops"] is not None
    names = ["sampled", "teacher-scored", "verifier calls", "updates", "EFLOP", *(["GPU-hours*"] if on_gpus else [])]
    lines = [[name, *_figures(cost)[: len(names)]] for name, cost in _costs(stages, sizes["total"])]
    title = "Cost at most, with every response at its full length; FLOPs of training, scoring and sampling:"
    return [
        title,
        Table(title, [*words("stage"), *map(Column, names)], lines),
        *([_assumed(assumed)] if on_gpus else ["On a CPU hours are not estimated."]),
        *(_cache(stage["name"], stage["cache"]) for stage in stages if "cache" in stage),
    ]


def _costs(stages: list[dict[str, Any]], total: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [*((stage["name"], stage["cost"]) for stage in stages), ("all", total)]


def _assumed(assumed: dict[str, Any]) -> str:
    gpu = assumed["gpu"] or "H100, as cluster.gpu names none"
    return (
        f"* assumed, not measured: {assumed['gpu_tflops']:g} TFLOP/s a GPU ({gpu}), of which training and scoring "
        f"reach {assumed['mfu_of_passes']:.0%} and sampling {assumed['mfu_of_sampling']:.0%}."
    )


def _cache(name: str, cache: dict[str, int]) -> str:
    read, sampled = cache["tokens_read"], cache["tokens_sampled"]
    return f"{name}: the warmup trains on {_count(read)} of {_count(sampled)} tokens sampled, {read / sampled:.0%}."


def _disk(stages: list[dict[str, Any]], disk: dict[str, Any]) -> list[str | Table]:
    lines = [
        [
            stage["name"],
            f"{found['checkpoint_gb']:,.1f}" if found["kept"] else "",
            str(found["kept"] or ""),
            f"{found['result_gb']:,.1f}",
        ]
        for stage in stages
        if (found := stage["disk"]) is not None
    ]
    title = "Disk in GB: checkpoints while a stage trains, then its model; samples at most:"
    known = "" if disk["complete"] else ", without stages of unknown size"
    return [
        title,
        Table(title, [*words("stage"), *map(Column, ("checkpoint", "kept", "left behind"))], lines),
        f"The run needs at most {disk['most']:,} GB at a time, and {disk['left']:,} GB stay{known}.",
    ]


def _figures(cost: dict[str, Any]) -> list[str]:
    parts = cost["pass_flops"], cost["sampling_flops"]
    flops = "?" if None in parts else f"{sum(parts) / 1e18:,.1f}"
    counts = [cost[name] for name in ("sampled_tokens", "teacher_scored_tokens", "verifier_calls", "updates")]
    return [*map(_count, counts), flops, "?" if cost["gpu_hours"] is None else f"{cost['gpu_hours']:,.0f}"]


def _count(value: int | None) -> str:
    if value is None:
        return "?"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:,}" if value else ""
