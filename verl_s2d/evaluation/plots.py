"""Plots of the report: accuracy by row, and what the stages logged over their steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_KL_KEYS = {"s2d/reverse_kl": "reverse KL", "train/forward_kl": "forward KL"}
_ACCURACY_KEYS = {"critic/score/mean": "training accuracy"}
_COLOURS = ("#3b6ea8", "#c8553d", "#5b8e5a", "#8a6bb0", "#b58a2f", "#4a9a9c", "#8c5a4a", "#777777")
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Curve:
    """One metric of one stage.

    Attributes:
        label: the stage's name without its seed; in the KL panel with the metric's.
        panel: "kl" or "accuracy".
    """

    label: str
    seed: int
    panel: str
    steps: list[int]
    values: list[float]


def read_curves(stages: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Curves from <dir>/metrics/attempt-K.jsonl of every stage that logged one of the known metrics.

    Args:
        stages: each with dir, name (which may end in "(seed N)") and seed.
    """
    curves = []
    for stage in stages:
        metrics = _metrics(Path(stage["dir"]))
        name = stage["name"].removesuffix(f" (seed {stage['seed']})")
        # No verifier scores the rollouts of on-policy distillation; verl logs zeros for them.
        unscored = any("s2d/reverse_kl" in data for data in metrics.values())
        for panel, keys in (("kl", _KL_KEYS), ("accuracy", {} if unscored else _ACCURACY_KEYS)):
            for key, what in keys.items():
                points = [(step, float(data[key])) for step, data in metrics.items() if data.get(key) is not None]
                if points:
                    label = f"{name}: {what}" if panel == "kl" else name
                    curves.append(Curve(label, stage["seed"], panel, *map(list, zip(*points, strict=True))))
    return curves


def plot_accuracy(data: Mapping[str, Any], path: Path) -> None:
    """Bars of avg@k by row with their standard errors; a dot for every seed where there are several."""
    rows, sets = data["rows"], data["sets"]
    figure = Figure(figsize=(max(5.0, 1.6 + 1.25 * len(rows) * max(1, len(sets) / 2)), 3.8), layout="constrained")
    axes = figure.add_subplot()
    width, top = 0.72 / len(sets), 0.0
    for number, name in enumerate(sets):
        for place, row in enumerate(rows):
            values = row["sets"][name]
            if values is None:
                continue
            x = place + (number - (len(sets) - 1) / 2) * width
            mean, error = 100 * values["avg"], 100 * (values["stderr"] or 0.0)
            axes.bar(
                x,
                mean,
                width * 0.94,
                color=_COLOURS[number % len(_COLOURS)],
                yerr=error,
                error_kw={"ecolor": "#333333", "elinewidth": 1.2, "capsize": 4},
                label=name if place == 0 else None,
            )
            dots = [100 * v["avg"] for v in values["per_seed"]]
            if len(dots) > 1:
                axes.plot([x] * len(dots), dots, "o", ms=4, mfc="white", mec="#333333", mew=1, zorder=3)
            reach = max([mean + error, *dots])
            axes.annotate(f"{mean:.1f}", (x, reach), (0, 4), textcoords="offset points", ha="center", fontsize=9)
            top = max(top, reach)
    axes.set_xticks(range(len(rows)), [row["name"].replace("-", "-\n", 1) for row in rows], fontsize=9)
    axes.set_ylim(0, min(112, top * 1.15 + 2))
    axes.set_ylabel(f"avg@{'/'.join(map(str, data['samples']))} (%)")
    over = "problems" if len(data["seeds"]) == 1 else f"{len(data['seeds'])} seeds"
    axes.set_title(f"Accuracy by row, +- standard error over {over}", fontsize=10, loc="left")
    _plain(axes)
    if len(sets) > 1:
        axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def plot_curves(curves: Sequence[Curve], path: Path) -> None:
    """KL to the teacher over the steps of the distillation stages, and accuracy over those of the RL stages."""
    titles = {"kl": "KL to the teacher (nats per token)", "accuracy": "Accuracy in training (mean score)"}
    seeds = sorted({curve.seed for curve in curves})
    labels = {p: list(dict.fromkeys(c.label for c in curves if c.panel == p)) for p in titles}
    panels = [panel for panel in titles if labels[panel]]
    height = 3.4 + 0.19 * max(len(labels[panel]) for panel in panels)
    figure = Figure(figsize=(5.4 * len(panels), height), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        named = set()
        for curve in (c for c in curves if c.panel == panel):
            axes.plot(
                curve.steps,
                curve.values,
                color=_COLOURS[labels[panel].index(curve.label) % len(_COLOURS)],
                linestyle=_LINES[seeds.index(curve.seed) % len(_LINES)],
                marker="o" if len(curve.steps) < 3 else None,
                lw=1.5,
                label=None if curve.label in named else curve.label,
            )
            named.add(curve.label)
        note = ", a line style a seed" if len(seeds) > 1 else ""
        axes.set_title(titles[panel] + note, fontsize=10, loc="left")
        axes.set_xlabel("step of the stage")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _plain(axes)
        # Below the axes: there may be many stages, and no corner of a plot is safely empty.
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    _save(figure, path)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.7)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=140, format="png")


def _metrics(directory: Path) -> dict[int, dict[str, Any]]:
    """Step -> metrics, attempts in order, a repeated step replaced by its last run; lines cut short are left out."""
    merged: dict[int, dict[str, Any]] = {}
    files = (directory / "metrics").glob("attempt-*.jsonl")
    for file in sorted(files, key=lambda f: (len(f.name), f.name)):
        for line in file.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                merged[int(entry["step"])] = dict(entry["data"])
            except (ValueError, KeyError, TypeError):
                continue
    return dict(sorted(merged.items()))
