"""Plots of a pilot, from pilot.json: learning curves with their fits, transfers, and predictions beside outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from verl_s2d.report.plots import INK, LINE, PAPER, SERIES, Plot, finish, mark
from verl_s2d.report.table_text import shortened


def pilot_plots(pilot: Mapping[str, Any]) -> list[Plot]:
    """Plot learning curves, transfers and predictions of a pilot; leave out what it has no points of."""
    return [
        learning_curves(pilot),
        *([transfers(pilot)] if pilot["transfers"] else []),
        *([predictions(pilot)] if any(entry["accuracy"] is not None for entry in pilot["candidates"]) else []),
    ]


def learning_curves(pilot: Mapping[str, Any]) -> Plot:
    """Plot each model's accuracy after GRPO on some labels, and the fitted law with its interval up to all labels."""
    curves = pilot["curves"]

    def draw(figure: Any) -> None:
        axes, handles = figure.add_subplot(), []
        for role, curve in curves.items():
            colour = _colour(pilot, role)
            _points(axes, curve["labels"], curve, colour)
            if fit := curve["fit"]:
                axes.plot(fit["labels"], _percent(fit["accuracy"]), color=colour, lw=1.3)
                band = _percent(fit["low"]), _percent(fit["high"])
                axes.fill_between(fit["labels"], *band, color=colour, alpha=0.15, lw=0)
            handles.append(mark("o", colour, 6, role if curve["fit"] else f"{role}: no fit", filled=True))
        axes.axvline(pilot["labels"], color=INK, lw=0.8, ls=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(f"labels (dotted: all {pilot['labels']:,})")
        axes.set_ylabel("accuracy (%)")
        finish(figure, axes, "both", handles)

    told = [
        f"{role} {_course(curve['labels'], curve['accuracy'])}{'' if curve['fit'] else ' (no fit)'}"
        for role, curve in curves.items()
    ]
    about = f"Accuracy by labels, with the fitted law and its {_level(pilot)} interval: {'; '.join(told)}."
    return Plot("pilot-curves", "Pilot: GRPO by labels", about, 2.35 + LINE * len(curves), draw)


def transfers(pilot: Mapping[str, Any]) -> Plot:
    """Plot the student's accuracy over its travel under each teacher checkpoint."""
    made = pilot["transfers"]
    names = [f"{entry['kind']} from {entry['teacher']} after {entry['labels']:,} labels" for entry in made]

    def draw(figure: Any) -> None:
        axes, seen = figure.add_subplot(), Counter()
        for name, entry in zip(names, made, strict=True):
            colour, dashes = _colour(pilot, entry["teacher"]), ("-", "--", ":", "-.")[seen[entry["teacher"]] % 4]
            seen[entry["teacher"]] += 1
            _points(axes, entry["travel"], entry, colour)
            axes.plot(entry["travel"], _percent(entry["accuracy"]), dashes, color=colour, lw=1.2, label=name)
        axes.axvline(pilot["travel"], color=INK, lw=0.8, ls=":")
        axes.set_xlim(left=0)
        axes.set_xlabel("travel from the initial student (dotted: the limit)")
        axes.set_ylabel("accuracy (%)")
        finish(figure, axes, "both", axes.get_legend_handles_labels()[0])

    told = [f"{n} {_course(e['travel'], e['accuracy'])}" for n, e in zip(names, made, strict=True)]
    about = f"The student's accuracy by travel: {'; '.join(told)}."
    return Plot("pilot-transfers", "Pilot: stage 2b", about, 2.35 + LINE * len(made), draw)


def predictions(pilot: Mapping[str, Any]) -> Plot:
    """Plot each candidate's predicted accuracy with its interval, and what became of those that were run."""
    known = [entry for entry in pilot["candidates"] if entry["accuracy"] is not None]
    outcomes = [entry.get("outcome") for entry in known]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for place, (entry, outcome) in enumerate(zip(known, outcomes, strict=True)):
            axes.plot(_percent([entry["low"], entry["high"]]), [place] * 2, "-", color=SERIES[0], lw=2)
            axes.plot(100 * entry["accuracy"], place, "o", ms=6, color=SERIES[0])
            if outcome:
                axes.plot(100 * outcome["accuracy"], place, "D", ms=6, mfc=PAPER, mec=SERIES[1], mew=1.6)
        axes.set_yticks(range(len(known)), [shortened(entry["name"], 32) for entry in known])
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_xlabel(f"predicted accuracy (%), {_level(pilot)} interval")
        finish(figure, axes, "x", [mark("D", SERIES[1], 6, "outcome")] if any(outcomes) else [])

    told = [
        f"{entry['name']} {100 * entry['accuracy']:.1f} ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
        + (f", outcome {100 * outcome['accuracy']:.1f}" if outcome else "")
        for entry, outcome in zip(known, outcomes, strict=True)
    ]
    about = f"Predicted accuracy in percent: {'; '.join(told)}."
    height = 0.6 + 0.27 * len(known) + (LINE if any(outcomes) else 0.0)
    return Plot("pilot-predictions", "Pilot: predictions", about, height, draw)


def _points(axes: Any, places: list[float], found: Mapping[str, Any], colour: str) -> None:
    error = _percent(found["stderr"])
    axes.errorbar(places, _percent(found["accuracy"]), yerr=error, fmt="o", ms=4, color=colour, elinewidth=1, capsize=2)


def _colour(pilot: Mapping[str, Any], role: str) -> str:
    """Choose a model's colour, the same in all plots."""
    return SERIES[list(pilot["curves"]).index(role) % len(SERIES)]


def _percent(shares: list[float]) -> list[float]:
    return [100 * share for share in shares]


def _course(places: list[float], accuracy: list[float]) -> str:
    return ", ".join(f"{100 * a:.1f} at {x:,.3g}" for x, a in zip(places, accuracy, strict=True))


def _level(pilot: Mapping[str, Any]) -> str:
    return f"{100 * pilot['level']:.0f} %"
