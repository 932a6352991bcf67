"""Colours of the report's plots, on white, and what they become on the page, where the reader's scheme decides."""

from __future__ import annotations

INK, GRID, PAPER = "#24292f", "#d8dee4", "#ffffff"
SERIES = ("#2866b1", "#b8501c", "#27794a", "#7a4fb3", "#c2267f", "#0d7680", "#8f6a0f", "#5b6774")
ACCENT = SERIES[0]

VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
}
"""Colour in a plot's file -> the page's."""
