"""Results kept by seed, and their tables, from numbers that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence.tables import tables
from tests.support import report_rows
from verl_s2d.report.row_results import RowResult


def row(name: str, seed: int, *right: int) -> RowResult:
    ledger = report_rows.ledger(["a", "b"], verifier_calls=8, updates=3)
    return RowResult(name, seed, report_rows.result(*right), ledger)


def counted(one: RowResult) -> RowResult:
    """Return a row as it is kept: with the number of its labels."""
    return replace(one, ledger={**one.ledger, "labels_read": 2})


def test_differences_are_paired_by_seed():
    """Differences of 25, 12.5 and 0 points: mean 12.5, standard error 12.5 / sqrt(3), t of two degrees 4.303."""
    rows = [row("full-bridge", seed, 2, 2) for seed in range(3)]
    rows += [row("exopd", seed, *right) for seed, right in enumerate([(3, 3), (2, 3), (2, 2)])]
    text = tables([counted(one) for one in rows])
    half = 4.303 * 12.5 / 3**0.5
    line = f"| exopd | +12.5 | {12.5 - half:+.1f} to {12.5 + half:+.1f} | 0: 25.0, 1: 12.5, 2: 0.0 |"
    assert line in text and "| full-bridge | 50.0 +- 0.0 | 0: 50.0, 1: 50.0, 2: 50.0 |" in text


def test_what_is_kept_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "SEEDS", tmp_path / "seeds")
    rows = [row("full-bridge", 4, 1, 3), row("exopd", 4, 2, 4)]
    monkeypatch.setattr(evidence, "found_rows", lambda run_dir: rows)
    evidence.collect(tmp_path, "abc")
    monkeypatch.setattr(evidence, "found_rows", lambda run_dir: [row("exopd", 4, 0, 4), row("tip", 4, 1, 1)])
    evidence.collect(tmp_path, "def")
    kept = evidence.kept()
    assert [(one.name, one.seed) for one in kept] == [("full-bridge", 4), ("exopd", 4), ("tip", 4)]
    assert [one.result["sets"]["eval"]["avg"] for one in kept] == pytest.approx([0.5, 0.5, 0.25])
    assert kept[0].ledger["labels_read"] == 2 and kept[0].ledger["verifier_calls"] == 8
    assert "| tip | -25.0 |" in tables(kept) and "| exopd | +0.0 |" in tables(kept)
