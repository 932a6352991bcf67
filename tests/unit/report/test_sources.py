"""Accuracy by data source: its numbers by hand, and a domain that regresses behind a rising average."""

from __future__ import annotations

import pytest

from tests.support.report_rows import ledger, markdown_of
from verl_s2d.report.document import document, terminal
from verl_s2d.report.write import RowResult, build_report
from verl_s2d.stages.evaluate.sample_and_score import summarise


def result(**right: tuple[int, ...]) -> dict:
    """result.json of a set whose problems of each source have so many right samples of four each."""
    rows = [
        {
            "set": "eval",
            "id": f"{source}-{i}",
            "correct": s < n,
            "response_ids": [1],
            "finish_reason": "stop",
            "level": None,
            "data_source": source,
        }
        for source, counts in right.items()
        for i, n in enumerate(counts)
        for s in range(4)
    ]
    return summarise(rows, 4)


def test_a_regression_of_one_source_shows_beside_the_risen_average():
    rows = [
        RowResult("cold-student", 0, result(math=(1, 1), writing=(4, 3)), ledger()),
        RowResult("mopd", 0, result(math=(4, 4), writing=(3, 3)), ledger()),
    ]
    report = build_report(rows)
    cold, mopd = (row["sets"]["eval"] for row in report.data["rows"])
    assert mopd["avg"] > cold["avg"]
    assert cold["sources"]["writing"] == {"n_problems": 2, "avg": 0.875, "stderr": pytest.approx(0.125)}
    text = markdown_of(report)
    assert "| row | math (2 problems) | writing (2 problems) |" in text
    assert "| cold-student | 25.0 +- 0.0 | 87.5 +- 12.5 |" in text
    assert "| mopd | 100.0 +- 0.0 (+75.0) | 75.0 +- 0.0 (-12.5) |" in text
    assert "(-12.5)" in terminal(document(report.data))


def test_several_seeds_are_averaged_and_without_a_cold_student_nothing_is_compared():
    rows = [RowResult("mopd", seed, result(math=(n,), code=(4,)), ledger()) for seed, n in enumerate((2, 4))]
    report = build_report(rows)
    math = report.data["rows"][0]["sets"]["eval"]["sources"]["math"]
    assert (math["avg"], math["n_problems"]) == (0.75, 1)
    text = markdown_of(report)
    assert "| mopd | 100.0 +- 0.0 | 75.0 +- 25.0 |" in text and "| cold-student" not in text


def test_a_set_of_one_source_has_no_such_table():
    assert "sources" not in result(math=(1, 2))["sets"]["eval"]
    report = build_report([RowResult("mopd", 0, result(math=(1, 2)), ledger())])
    assert "data source" not in markdown_of(report)
