"""Plots of a report, drawn by matplotlib as SVG: small, to stand side by side."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_s2d.metrics.metric_table import Panel
from verl_s2d.recipe.method_rows import TEACHER_ROWS
from verl_s2d.report.curves import moving_mean, thin
from verl_s2d.report.table_text import shortened

WIDTH, LINE = 4.4, 0.19
"""Inches: width of a plot; height of a line of its legend."""
MOST_RAW = 12
"""Lines of a plot that are drawn as logged beside their means; more would hide each other."""
INK, GRID, PAPER = "#24292f", "#d8dee4", "#ffffff"
SERIES = ("#2866b1", "#b8501c", "#27794a", "#c2267f", "#5b6774", "#7a4fb3", "#0d7680", "#8f6a0f")
ACCENT = SERIES[0]


@dataclass(frozen=True)
class Plot:
    """A plot that is not drawn yet.

    Attributes:
        name: name of its file, without suffix.
        about: its content in words, for readers who do not see it.
        height: inches.
        draw: called with a matplotlib figure.
    """

    name: str
    title: str
    about: str
    height: float
    draw: Callable[[Any], None]

    def svg(self) -> str:
        """Draw the plot; return the content of an SVG file with a white background."""
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        # Names are text, not TeX; text is not drawn as paths; equal plots give equal files.
        options = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": self.name, "font.size": 10}
        options |= {"font.sans-serif": ["DejaVu Sans"]}
        colours = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK)
        with rc_context({**options, **colours}):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            FigureCanvasSVG(figure)
            self.draw(figure)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()


def accuracy_plot(data: Mapping[str, Any], set_name: str) -> Plot:
    """Plot a bar per row with its standard error, a dot per seed, a diamond for a published result. Teachers have
    another colour."""
    rows = [row for row in data["rows"] if row["sets"][set_name] is not None]
    published = [row["published"].get(set_name) for row in rows]
    unit = f"avg@{'/'.join(map(str, data['samples']))} (%)"

    def draw(figure: Any) -> None:
        axes, bars = figure.add_subplot(), []
        for place, (row, other) in enumerate(zip(rows, published, strict=True)):
            values = row["sets"][set_name]
            mean, error = 100 * values["avg"], 100 * (values["stderr"] or 0.0)
            axes.barh(place, mean, 0.62, color=SERIES[4] if row["name"] in TEACHER_ROWS else ACCENT)
            axes.errorbar(mean, place, xerr=error, color=INK, elinewidth=1.2, capsize=3)
            seeds = [100 * seed["avg"] for seed in values["per_seed"]]
            if len(seeds) > 1:
                axes.plot(seeds, [place] * len(seeds), "o", ms=4, mfc=PAPER, mec=INK, mew=1, zorder=3)
            reaches = [mean + error, *seeds]
            if other is not None:
                axes.plot(other, place, "D", ms=6, mfc=PAPER, mec=SERIES[1], mew=1.6, zorder=4)
                reaches.append(other)
            bars.append((mean, max(reaches), other))
        top = max((reach for _, reach, _ in bars), default=0.0) * 1.16 + 1
        for place, (mean, reach, other) in enumerate(bars):
            # Inside the bar if it fits; the published value right of all marks, so that the two are not confused.
            inside = mean > 0.15 * top
            where, colour = (0.0, PAPER) if inside else (reach if other is None else mean, INK)
            near = {"textcoords": "offset points", "va": "center"}
            axes.annotate(f"{mean:.1f}", (where, place), (6, 0), color=colour, **near)
            if other is not None:
                axes.annotate(f"{other:.1f}", (reach, place), (8, 0), color=SERIES[1], **near)
        axes.set_yticks(range(len(rows)), [shortened(row["name"], 32) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, top)
        axes.set_xlabel(unit)
        marks = [mark("o", INK, 4, "a seed")] if len(data["seeds"]) > 1 else []
        marks += [mark("D", SERIES[1], 6, "published")] if any(other is not None for other in published) else []
        finish(figure, axes, "x", marks, columns=2)

    about = [f"{row['name']} {100 * row['sets'][set_name]['avg']:.1f}" for row in rows]
    about = f"{unit} on {set_name}, with standard errors: {', '.join(about)}."
    extra = LINE if len(data["seeds"]) > 1 or any(other is not None for other in published) else 0.0
    name, title = f"accuracy-{data['sets'].index(set_name)}", f"Accuracy on {set_name}"
    return Plot(name, title, about, 0.6 + 0.27 * len(rows) + extra, draw)


def cost_plot(data: Mapping[str, Any], set_name: str) -> Plot | None:
    """Plot accuracy over GPU-hours (minutes where no GPU was used), a mark with its standard error for every row of
    students; None for a single row."""
    rows = [row for row in data["rows"] if row["sets"][set_name] is not None and row["name"] not in TEACHER_ROWS]
    if len(rows) < 2:
        return None
    on_gpus = any(row["gpu_hours"] for row in rows)
    unit = "GPU-hours" if on_gpus else "minutes"
    costs = [(row["gpu_hours"] or 0.0) if on_gpus else 60 * row["hours"] for row in rows]

    def draw(figure: Any) -> None:
        axes, handles = figure.add_subplot(), []
        for place, (row, cost) in enumerate(zip(rows, costs, strict=True)):
            values = row["sets"][set_name]
            colour, shape = SERIES[place % len(SERIES)], "osD^v"[place // len(SERIES) % 5]
            error = 100 * (values["stderr"] or 0.0)
            axes.errorbar(cost, 100 * values["avg"], yerr=error, color=colour, elinewidth=1, capsize=2)
            axes.plot(cost, 100 * values["avg"], shape, ms=7, color=colour)
            label = f"{row['name']}: {100 * values['avg']:.1f} % at {cost:,.3g}"
            handles.append(mark(shape, colour, 7, shortened(label, 56), filled=True))
        axes.set_xlim(0, 1.08 * max(*costs, 1e-9))
        axes.set_xlabel(unit)
        axes.set_ylabel(f"avg@{'/'.join(map(str, data['samples']))} (%)")
        finish(figure, axes, "both", handles)

    told = [
        f"{row['name']} {100 * row['sets'][set_name]['avg']:.1f} at {c:,.3g}"
        for row, c in zip(rows, costs, strict=True)
    ]
    name, title = f"cost-{data['sets'].index(set_name)}", f"Accuracy on {set_name} against cost"
    return Plot(name, title, f"Percent at {unit}: {', '.join(told)}.", 2.35 + LINE * len(rows), draw)


def differences_plot(data: Mapping[str, Any], set_name: str, most: int = 15) -> Plot | None:
    """Plot a dot per pair of rows with its interval; None without pairs or with more than `most`."""
    pairs = [entry for entry in data["differences"] if entry["set"] == set_name]
    if not 0 < len(pairs) <= most:
        return None
    names = [f"{pair['row']} − {pair['minus']}" for pair in pairs]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, lw=0.8)
        for place, pair in enumerate(pairs):
            if pair["interval"] is not None:
                axes.plot([100 * v for v in pair["interval"]], [place] * 2, "-", color=ACCENT, lw=2)
            seeds = [100 * seed["mean"] for seed in pair["per_seed"]]
            if len(seeds) > 1:
                axes.plot(seeds, [place] * len(seeds), "o", ms=4, mfc=PAPER, mec=INK, mew=1)
            axes.plot(100 * pair["mean"], place, "o", ms=6, color=ACCENT)
        axes.set_yticks(range(len(pairs)), [shortened(name, 36) for name in names])
        axes.set_ylim(len(pairs) - 0.4, -0.6)
        axes.set_xlabel("percentage points")
        finish(figure, axes, "x", [mark("o", INK, 4, "a seed")] if len(data["seeds"]) > 1 else [])

    about = ", ".join(f"{name} {100 * pair['mean']:+.1f}" for name, pair in zip(names, pairs, strict=True))
    title = f"Differences on {set_name}"
    extra = LINE if len(data["seeds"]) > 1 else 0.0
    name = f"differences-{data['sets'].index(set_name)}"
    return Plot(name, title, f"Percentage points: {about}.", 0.6 + 0.22 * len(pairs) + extra, draw)


def in_order_of_method(stages: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort stages by their place in the method; equal ones stay in the order of their start."""
    return sorted(stages, key=lambda stage: stage["place"])


def panel_plot(data: Mapping[str, Any], panel: Panel, trained: Sequence[str]) -> Plot | None:
    """Plot a line per stage, seed and series of the panel; None if no stage has one.

    Args:
        trained: names of the stages that have curves. A stage has the same colour in all plots if colours suffice.
    """
    stages = in_order_of_method(stage for stage in data["stages"] if panel.name in stage["curves"])
    if not stages:
        return None
    several = len(data["seeds"]) > 1
    named = trained if len(trained) <= len(SERIES) else list(dict.fromkeys(stage["name"] for stage in stages))
    lines: dict[str, list[tuple[str, int, dict[str, list]]]] = {}
    for stage in stages:
        for number, (series, curve) in enumerate(stage["curves"][panel.name].items()):
            shared = series and len(stage["curves"][panel.name]) > 1
            label = f"{stage['name']}, {series}" if shared else stage["name"]
            lines.setdefault(label, []).append((stage["name"], number, curve))
    labels = {
        label: f"{label}: {_ends([curve['values'] for *_, curve in members])}" for label, members in lines.items()
    }

    # Many lines in one plot need no detail, and the page has to stay small.
    count = sum(map(len, lines.values()))
    most = max(40, 1600 // count)

    def draw(figure: Any) -> None:
        axes, handles = figure.add_subplot(), []
        for label, members in lines.items():
            for name, number, curve in members:
                place = named.index(name)
                # After the last colour they repeat, dashed.
                dashes = ("-", "--", ":", "-.")[(number + place // len(SERIES)) % 4]
                style = {"color": SERIES[place % len(SERIES)], "linestyle": dashes, "lw": 1.0 if several else 1.5}
                marker = "o" if len(curve["steps"]) < 3 else None
                mean = moving_mean(curve["values"])
                if mean is not None and count <= MOST_RAW:
                    raw = thin(curve["steps"], curve["values"], most)
                    axes.plot(*raw, color=style["color"], lw=0.7, alpha=0.35)
                line = thin(curve["steps"], curve["values"] if mean is None else mean, most)
                drawn = axes.plot(*line, marker=marker, ms=4, **style)
            drawn[0].set_label(shortened(labels[label], 56))
            handles.append(drawn[0])
        axes.set_xlabel("step of the stage")
        axes.set_ylabel(panel.unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if panel.from_zero:
            low, high = axes.get_ylim()
            axes.set_ylim(min(0.0, low), max(0.0, high))
        finish(figure, axes, "y", handles)

    about = f"{panel.unit}, first to last step: {'; '.join(labels.values())}."
    return Plot(panel.name, panel.title, about, 2.35 + LINE * len(lines), draw)


def _ends(curves: Sequence[Sequence[float]]) -> str:
    """Write the first and the last value; means over several seeds."""
    first, last = (sum(values[end] for values in curves) / len(curves) for end in (0, -1))
    return f"{first:.3g} → {last:.3g}".replace("-", "−")


def mark(shape: str, colour: str, size: float, label: str, *, filled: bool = False) -> Any:
    """Make a legend entry of one marker."""
    from matplotlib.lines import Line2D

    return Line2D([], [], ls="", marker=shape, ms=size, mfc=colour if filled else PAPER, mec=colour, label=label)


def finish(figure: Any, axes: Any, grid: str, handles: Sequence[Any], columns: int = 1) -> None:
    """Style axes and legend. The legend is below: no corner of a plot is safely empty."""
    axes.spines[["top", "right", "left"] if grid == "x" else ["top", "right"]].set_visible(False)
    axes.tick_params(axis="y" if grid == "x" else "both", length=0 if grid == "x" else 3)
    axes.grid(axis=grid, color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    if handles:
        figure.legend(handles=list(handles), frameon=False, fontsize=9, loc="outside lower left", ncols=columns)
