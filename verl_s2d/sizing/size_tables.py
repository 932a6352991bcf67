"""The sizes of a plan as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_WORDS = ("stage", "most of it", "")
_PHASES = ("loading", "rollout", "log-probs", "reference", "update", "weight sync")


def sizes_text(view: dict[str, Any]) -> str:
    """Tables of memory and cost, and what does not fit."""
    stages = [stage for stage in view["stages"] if "cost" in stage]
    sizes = view["sizes"]
    lines = [""]
    sized = [stage for stage in stages if stage["memory"] is not None]
    if sized:
        lines += _memory(sized, sizes["gpu_memory_gib"])
    elif view["device"] == "cpu":
        lines.append("On a CPU memory is not estimated.")
    lines += ["", *_cost(stages, sizes)]
    lines += ["", *_disk(stages, sizes["disk_gb"])]
    lines += [f"unknown: {why}" for why in sizes["unknown"]]
    lines += [f"note: {warning}" for warning in sizes["warnings"]]
    return "\n".join(lines)


def _memory(stages: list[dict[str, Any]], gpu: float) -> list[str]:
    phases = [name for name in _PHASES if any(name in s["memory"]["phases"] for s in stages)]
    rows = [["stage", *phases, "most of it", "at once", "in flight", "host", ""]]
    problems = []
    alike: dict[tuple[str, ...], list[str]] = {}
    for stage in stages:
        memory = stage["memory"]
        totals = {name: sum(terms.values()) for name, terms in memory["phases"].items()}
        terms = memory["phases"][memory["peak"]]
        most = max(terms, key=terms.get)
        sampling = memory.get("sampling")
        at_once = f"{sampling['sequences_at_once']} x {sampling['replicas']}" if sampling else ""
        in_flight = f"{sampling['sequences_in_flight']:,}" if sampling else ""
        host = f"{memory['host_gib_per_node']:.0f}" if memory["host_gib_per_node"] else ""
        verdict = "does not fit" if memory["problem"] else "tight" if memory["tight"] else "fits"
        figures = [f"{totals[name]:.1f}" if name in totals else "" for name in phases]
        row = [*figures, f"{most} {terms[most]:.1f}", at_once, in_flight, host, verdict]
        alike.setdefault(tuple(row), []).append(stage["name"])
        if memory["problem"]:
            problems.append(f"{stage['name']} does not fit: {memory['problem']}")
    for row, (name, *others) in alike.items():
        rows.append([f"{name}, {len(others)} alike" if others else name, *row])
    return [
        f"Memory of a GPU of {gpu:g} GiB (cluster.gpu_memory_gb), estimated for sequences of full length:",
        *_table(rows),
        "at once: sequences of full length in an engine's cache, by engines; in flight: sequences of any length in all",
        "engines, at most; host: GiB offloaded on each node.",
        *problems,
    ]


def _cost(stages: list[dict[str, Any]], sizes: dict[str, Any]) -> list[str]:
    rows = [["stage", "sampled", "teacher-scored", "verifier calls", "updates", "EFLOP", "GPU-hours*"]]
    rows += [[stage["name"], *_figures(stage["cost"])] for stage in stages]
    rows.append(["all", *_figures(sizes["total"])])
    assumed = sizes["assumed"]
    return [
        "Cost at most, with every response at its full length; FLOPs of training, scoring and sampling:",
        *_table(rows),
        f"* assumed, not measured: {assumed['gpu_tflops']:g} TFLOP/s a GPU, of which training and scoring reach "
        f"{assumed['mfu_of_passes']:.0%} and sampling {assumed['mfu_of_sampling']:.0%}.",
        *(_read(stage["name"], stage["cache"]) for stage in stages if "cache" in stage),
    ]


def _read(name: str, cache: dict[str, int]) -> str:
    """Tokens trained on over tokens sampled of one cache."""
    read, sampled = cache["tokens_read"], cache["tokens_sampled"]
    return f"{name}: the warmup trains on {_count(read)} of {_count(sampled)} tokens sampled, {read / sampled:.0%}."


def _disk(stages: list[dict[str, Any]], disk: dict[str, Any]) -> list[str]:
    rows = [["stage", "checkpoint", "kept", "left behind"]]
    for stage in stages:
        if (found := stage["disk"]) is not None:
            checkpoint = f"{found['checkpoint_gb']:,.1f}" if found["kept"] else ""
            rows.append([stage["name"], checkpoint, str(found["kept"] or ""), f"{found['result_gb']:,.1f}"])
    known = "" if disk["complete"] else ", without stages of unknown size"
    return [
        "Disk in GB: checkpoints while a stage trains, then its model; samples at most:",
        *_table(rows),
        f"The run needs at most {disk['most']:,} GB at a time, and {disk['left']:,} GB stay{known}.",
    ]


def _figures(cost: dict[str, Any]) -> list[str]:
    flops = (
        None if None in (cost["pass_flops"], cost["sampling_flops"]) else cost["pass_flops"] + cost["sampling_flops"]
    )
    counts = [cost[name] for name in ("sampled_tokens", "teacher_scored_tokens", "verifier_calls", "updates")]
    hours = "?" if cost["gpu_hours"] is None else f"{cost['gpu_hours']:,.0f}"
    return [*map(_count, counts), "?" if flops is None else f"{flops / 1e18:,.1f}", hours]


def _count(value: int | None) -> str:
    if value is None:
        return "?"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:,}" if value else ""


def _table(rows: Iterable[list[str]]) -> list[str]:
    """Words to the left, figures to the right."""
    header, *_ = rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if name in _WORDS else cell.rjust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ]
        return ("  " + "  ".join(cells)).rstrip()

    return [line(row) for row in rows]
