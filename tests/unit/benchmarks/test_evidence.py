"""Results kept by seed, and their tables, from numbers that can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.evidence import kept
from benchmarks.evidence.__main__ import study_tables
from benchmarks.evidence.kept import keep_rows, kept_rows, kept_seeds
from benchmarks.evidence.pilot_picks import behind_best, keep_pilot, picks
from benchmarks.evidence.power import detectable, power_table
from benchmarks.evidence.studies import STUDIES
from benchmarks.evidence.tables import tables
from tests.support import report_rows
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.row_results import RowResult


def row(name: str, seed: int, *right: int) -> RowResult:
    ledger = report_rows.ledger(["a", "b"], verifier_calls=8, updates=3)
    return RowResult(name, seed, report_rows.result(*right), ledger)


def counted(one: RowResult) -> RowResult:
    """Return a row as it is kept: with the number of its labels."""
    return replace(one, ledger={**one.ledger, "labels_read": 2})


def differing() -> list[RowResult]:
    """Make rows whose differences are 25, 12.5 and 0 points: mean 12.5, standard deviation 12.5."""
    rows = [row("full-bridge", seed, 2, 2) for seed in range(3)]
    rows += [row("exopd", seed, *right) for seed, right in enumerate([(3, 3), (2, 3), (2, 2)])]
    return [counted(one) for one in rows]


def test_differences_are_paired_by_seed():
    """The standard error is 12.5 / sqrt(3), t of two degrees 4.303."""
    text = tables(differing(), [("exopd", "full-bridge")])
    half = 4.303 * 12.5 / 3**0.5
    line = f"| exopd - full-bridge | +12.5 | {12.5 - half:+.1f} to {12.5 + half:+.1f} | 0: 25.0, 1: 12.5, 2: 0.0 |"
    assert line in text and "| full-bridge | 50.0 +- 0.0 | 0: 50.0, 1: 50.0, 2: 50.0 |" in text


def test_a_difference_is_found_as_often_as_power_says():
    """Draw 40,000 studies of 8 seeds with the smallest difference: four of five have an interval without 0."""
    smallest = detectable(2.0, 8)
    draws = np.random.default_rng(0).normal(smallest, 2.0, (40_000, 8))
    assert np.mean(ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert detectable(2.0, 16) < smallest < detectable(4.0, 8)
    with pytest.raises(ValueError, match="needs two"):
        detectable(2.0, 1)


def test_power_rests_on_the_deviation_between_the_seeds_kept():
    rows = [*differing(), counted(row("tip", 0, 3, 3))]
    text = "\n".join(power_table(rows, [("exopd", "full-bridge"), ("tip", "full-bridge")], 8))
    assert f"| exopd - full-bridge | 3 | 12.5 | {detectable(12.5, 8):.1f} |" in text and "tip" not in text


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SEEDS", tmp_path / "seeds")


def keep(monkeypatch, study: str, *rows: RowResult, commit: str = "abc") -> None:
    monkeypatch.setattr(kept, "found_rows", lambda run_dir: list(rows))
    keep_rows(study, Path(), commit)


def test_what_is_kept_is_read_again(seeds, monkeypatch):
    keep(monkeypatch, "quickstart", row("full-bridge", 4, 1, 3), row("exopd", 4, 2, 4))
    keep(monkeypatch, "quickstart", row("exopd", 4, 0, 4), row("tip", 4, 1, 1), commit="def")
    keep(monkeypatch, "pool", row("full-bridge", 4, 0, 0))
    found = kept_rows("quickstart")
    assert [(one.name, one.seed) for one in found] == [("full-bridge", 4), ("exopd", 4), ("tip", 4)]
    assert [one.result["sets"]["eval"]["avg"] for one in found] == pytest.approx([0.5, 0.5, 0.25])
    assert found[0].ledger["labels_read"] == 2 and found[0].ledger["verifier_calls"] == 8
    table = tables(found, [("tip", "full-bridge"), ("exopd", "full-bridge"), ("exopd", "tip")])
    assert "| tip - full-bridge | -25.0 |" in table and "| exopd - full-bridge | +0.0 |" in table
    assert "| exopd - tip | +25.0 |" in table


def test_a_row_collected_again_keeps_the_commit_that_ran_it(seeds, monkeypatch):
    keep(monkeypatch, "quickstart", row("full-bridge", 4, 1, 3), row("exopd", 4, 2, 4))
    keep(
        monkeypatch, "quickstart", row("full-bridge", 4, 1, 3), row("exopd", 4, 2, 3), row("tip", 4, 1, 1), commit="def"
    )
    (seed,) = kept_seeds("quickstart")
    found = {name: entry["commit"] for name, entry in seed["rows"].items()}
    assert found == {"full-bridge": "abc", "exopd": "def", "tip": "def"}


def test_a_pick_is_compared_with_the_best_row(seeds, monkeypatch, tmp_path):
    """Compare 2, 2 with 4, 1 right of 4 samples: the means differ by 1/8; differences of 1/2, -1/4 have s.e. 3/8."""
    stages = [{"digest": "d1"}, {"digest": "d2"}]
    rows = [replace(row("direct-grpo", 0, 2, 2), stages=stages), replace(row("half-split-a", 0, 4, 1), stages=stages)]
    for digest, tokens in (("d1", 100), ("d2", 300), ("pilots", 77)):
        place = tmp_path / "stages" / digest
        place.mkdir(parents=True)
        ledger = {"sampled_tokens": tokens, "verifier_calls": 10}
        (place / "manifest.json").write_text(json.dumps({"digest": digest, "ledger": ledger}))
    pilot = {
        "seed": 0,
        "best": "direct-grpo",
        "verdict": "too close to call: direct-grpo (best in 60 % of resamples)",
        "rivals": ["half-split-a"],
        "warnings": [],
        "candidates": [{"name": "direct-grpo", "accuracy": 0.4, "low": 0.3, "high": 0.5, "dropped": None}],
        "spent": {"sampled_tokens": 80, "verifier_calls": 2},
    }
    (tmp_path / "pilot.json").write_text(json.dumps(pilot))
    keep(monkeypatch, "planner", *rows)
    keep_pilot("planner", tmp_path, rows)
    (line,) = picks("planner")[2:]
    cells = "too close to call | direct-grpo | 50.0 | half-split-a | 62.5 | 12.5 +- 37.5 | 20% | 10%"
    assert line == f"| 0 | {cells} |"


def test_a_pilot_that_picks_nothing_has_the_worst_row(seeds, monkeypatch):
    keep(monkeypatch, "planner", row("direct-grpo", 0, 2, 2), row("full-bridge-a", 0, 3, 3))
    (seed,) = kept_seeds("planner")
    assert behind_best(seed["rows"], None) == ("full-bridge-a", 0.25, 0.0)


@pytest.mark.parametrize("name", STUDIES)
def test_studies_name_rows_and_keys_that_there_are(name):
    study = STUDIES[name]
    recipe = load_recipe(study.recipe, [*study.overrides, f"rows={json.dumps(list(study.rows))}"])
    rows = set(study.names())
    assert rows <= set(recipe.row_names) and study.base in rows
    assert {row for pair in study.compared() for row in pair} <= rows


@pytest.mark.parametrize("name", [name for name in STUDIES if kept_seeds(name)])
def test_results_are_those_of_the_seeds_kept(name):
    results = (STUDIES[name].recipe.parent / "RESULTS.md").read_text()
    lines = [line for line in study_tables(name).splitlines() if line]
    assert lines and not [line for line in lines if line not in results]
