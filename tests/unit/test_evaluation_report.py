"""Result files and reports, from samples whose numbers can be worked out by hand."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_s2d.evaluation.evaluate import GENERATIONS, is_correct, summarise
from verl_s2d.evaluation.plots import read_curves
from verl_s2d.evaluation.report import RowResult, build_report, write_report


def result(*correct: int, samples: int = 4, name: str = "eval") -> dict:
    """result.json of a set whose problems have so many right samples each."""
    rows = [
        {
            "set": name,
            "id": f"p{i}",
            "correct": s < right,
            "response_ids": [1] * (2 + s),
            "finish_reason": "length" if s == 0 else "stop",
        }
        for i, right in enumerate(correct)
        for s in range(samples)
    ]
    return summarise(rows, samples)


def ledger(labels=(), **numbers):
    zero = {"verifier_calls": 0, "sampled_tokens": 0, "teacher_scored_tokens": 0, "updates": 0, "seconds": 0.0}
    return {"labels_read": list(labels), **zero, **numbers}


def stage(directory, name, digest, **metrics):
    (directory / digest / "metrics").mkdir(parents=True)
    lines = [json.dumps({"step": s, "data": {k: v[s - 1] for k, v in metrics.items()}}) for s in (1, 2)]
    (directory / digest / "metrics/attempt-1.jsonl").write_text("\n".join(lines))
    return {
        "kind": "x",
        "name": name,
        "dir": str(directory / digest),
        "digest": digest,
        "seconds": 60.0,
        "updates": 2,
    }


def test_summary_by_hand():
    summary = result(0, 2, 4)["sets"]["eval"]
    assert summary["avg"] == 0.5 and summary["stderr"] == pytest.approx((0.25 / 3) ** 0.5)
    # pass@2 of 2 right in 4: 1 - C(2,2)/C(4,2).
    assert summary["pass_at"] == {"1": 0.5, "2": pytest.approx((0 + 5 / 6 + 1) / 3), "4": pytest.approx(2 / 3)}
    assert summary["mean_tokens"] == 3.5 and summary["truncated"] == 3
    assert result(0, 2, 4)["per_problem"]["eval"][1] == {"id": "p1", "correct": 2, "samples": 4}
    assert result(3)["sets"]["eval"]["stderr"] is None


def test_a_file_of_generations_by_hand(tmp_path):
    """Two problems of level 3, one of level 5, four samples each."""
    right = {"a": (1, 1, 0, 0), "b": (0, 0, 0, 0), "c": (1, 1, 1, 0)}
    rows = [
        {
            "set": "math",
            "id": i,
            "sample": n,
            "response": "",
            "response_ids": [7] * (n + 1),
            "finish_reason": "length" if i == "b" else "stop",
            "correct": bool(c),
            "level": "5" if i == "c" else "3",
        }
        for i, scores in right.items()
        for n, c in enumerate(scores)
    ]
    pq.write_table(pa.Table.from_pylist(rows, GENERATIONS), tmp_path / "generations.parquet")
    summary = summarise(pq.read_table(tmp_path / "generations.parquet").to_pylist(), 4)["sets"]["math"]
    # Problems 0.5, 0, 0.75: mean 5/12, squared differences (1/12)^2 + (5/12)^2 + (4/12)^2 = 42/144, over 2 and over 3.
    assert summary["avg"] == pytest.approx(5 / 12) and summary["stderr"] == pytest.approx((42 / 144 / 2 / 3) ** 0.5)
    # pass@2: 1 - C(2,2)/C(4,2), 0, 1 - 0.
    assert summary["pass_at"] == pytest.approx({"1": 5 / 12, "2": (5 / 6 + 0 + 1) / 3, "4": 2 / 3})
    assert summary["mean_tokens"] == 2.5 and summary["truncated"] == 4
    assert summary["levels"] == {
        "3": {"n_problems": 2, "avg": 0.25, "stderr": pytest.approx(0.25)},
        "5": {"n_problems": 1, "avg": 0.75, "stderr": None},
    }
    whole = {"sets": {"math": summary}, "per_problem": {"math": [{"id": "a", "correct": 2, "samples": 4}]}}
    assert (
        "| row | 3 | 5 |\n|---|---|---|\n| x | 25.0 | 75.0 |"
        in build_report([RowResult("x", 0, whole, ledger())]).markdown()
    )


@pytest.mark.parametrize(
    ("score", "right"),
    [
        *[(1.0, True), (1, True), (True, True), (0.99, False), (0, False), (-1.0, False)],
        *[({"score": 1.0}, True), ({"score": -1.0, "acc": 1}, True), ({"score": 1.0, "acc": False}, False)],
    ],
)
def test_what_counts_as_right(score, right):
    assert is_correct(score) is right


def test_one_seed(tmp_path):
    shared = stage(tmp_path, "teacher-rl", "aaaa", **{"critic/score/mean": [0.1, 0.2]})
    own = stage(tmp_path, "opd", "bbbb", **{"s2d/reverse_kl": [0.5, 0.4], "response_length/mean": [4, 4]})
    rows = [
        RowResult("cold", 0, result(0, 1, 2), ledger()),
        RowResult("bridge", 0, result(2, 3, 4), ledger(["a", "b"], updates=4, seconds=90.0), [shared, own]),
        RowResult("full", 0, result(2, 3, 4), ledger(["a"], verifier_calls=1234), [shared]),
    ]
    data = write_report(rows, tmp_path / "out").data
    assert json.loads((tmp_path / "out/report.json").read_text()) == json.loads(json.dumps(data))
    assert [row["name"] for row in data["rows"]] == ["cold", "bridge", "full"]
    bridge = data["rows"][1]
    assert bridge["sets"]["eval"]["avg"] == 0.75 and bridge["sets"]["eval"]["stderr_over"] == "problems"
    assert bridge["ledger"]["labels_read"] == 2 and bridge["per_seed"][0]["ledger"]["labels_read"] == ["a", "b"]
    first, _, last = data["differences"]
    assert (first["row"], first["minus"], first["mean"]) == ("bridge", "cold", 0.5)
    assert first["interval"] == [0.5, 0.5] and last["mean"] == 0.0

    text = (tmp_path / "out/report.md").read_text()
    assert "| bridge | 75.0 +- 14.4 | 2 | 0 | 0 | 0 | 4 | 1.5 |" in text
    assert "| bridge - cold | +50.0 | +50.0 to +50.0 |" in text
    assert "| teacher-rl | x | aaaa | 2 | 1.0 | bridge, full |" in text
    for plot in data["plots"]:
        assert f"({plot})" in text and (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")
    assert data["plots"] == ["accuracy.png", "curves.png"]


def test_several_seeds(tmp_path):
    rows = [
        RowResult(name, seed, result(*correct), ledger(["a"] * 1, updates=10 * seed), [])
        for seed, lift in ((0, 0), (1, 1), (2, 1))
        for name, correct in (("cold", (0, 1, 2)), ("bridge", (1 + lift, 2 + lift, 3 + lift)))
    ]
    report = build_report(rows)
    bridge = report.data["rows"][1]
    assert bridge["sets"]["eval"]["avg"] == pytest.approx((0.5 + 0.75 + 0.75) / 3)
    assert bridge["sets"]["eval"]["stderr"] == pytest.approx(0.25 / 3)
    assert bridge["sets"]["eval"]["stderr_over"] == "seeds" and bridge["ledger"]["updates"] == 10
    (difference,) = report.data["differences"]
    assert [s["mean"] for s in difference["per_seed"]] == [0.25, 0.5, 0.5]
    assert difference["interval"] == pytest.approx([5 / 12 - 4.303 / 12, 5 / 12 + 4.303 / 12], abs=1e-3)
    assert "66.7 +- 8.3 (50.0, 75.0, 75.0)" in report.markdown()
    assert "+41.7" in report.table() and "+25.0, +50.0, +50.0" in report.table()
    assert json.loads(report.to_json()) == report.data


def test_two_seeds_have_no_interval_and_a_missing_row_is_left_out():
    rows = [RowResult(n, s, result(0, s + 1), ledger()) for n, s in (("a", 0), ("a", 1), ("b", 1), ("b", 0), ("c", 1))]
    differences = {(d["row"], d["minus"]): d for d in build_report(rows).data["differences"]}
    assert differences["b", "a"]["interval"] is None and "| b - a | +0.0 | - |" in build_report(rows).markdown()
    assert [s["seed"] for s in differences["c", "a"]["per_seed"]] == [1]


def test_rows_over_different_sets_and_problems():
    rows = [
        RowResult("a", 0, result(1, 2), ledger()),
        RowResult("b", 0, result(1, 2, 3), ledger()),
        RowResult("c", 0, result(1, name="other"), ledger()),
    ]
    report = build_report(rows)
    assert report.data["differences"] == []
    assert "| c | - | 25.0 |" in report.markdown()


def test_published_results_stand_beside_the_rows():
    rows = [RowResult(name, 0, result(1, 2), ledger()) for name in ("a", "b")]
    text = build_report(rows, {"b": {"eval": 71.25, "elsewhere": 1.0}, "c": {"eval": 2.0}}).markdown()
    assert "| row | avg@4 | published | labels |" in text
    assert "| a | 37.5 +- 12.5 | - | 0 |" in text and "| b | 37.5 +- 12.5 | 71.2 | 0 |" in text
    assert "published" not in build_report(rows).markdown()


def test_a_report_of_nothing_and_of_a_row_given_twice():
    row = RowResult("a", 0, result(1, 2), ledger())
    for rows in ([], [row, row]):
        with pytest.raises(ValueError):
            build_report(rows)


def test_curves_merge_attempts(tmp_path):
    made = stage(tmp_path, "opd (seed 1)", "d", **{"s2d/reverse_kl": [0.5, 0.4]}) | {"seed": 1}
    metrics = tmp_path / "d/metrics"
    (metrics / "attempt-2.jsonl").write_text('{"step": 2, "data": {"s2d/reverse_kl": 0.3}}\n{"step": 3, "da')
    (metrics / "attempt-10.jsonl").write_text('{"step": 3, "data": {"s2d/reverse_kl": 0.2}}\n')
    (curve,) = read_curves([made])
    assert (curve.label, curve.steps, curve.values) == ("opd: reverse KL", [1, 2, 3], [0.5, 0.3, 0.2])


def test_a_stage_that_no_verifier_scores_has_no_accuracy_curve(tmp_path):
    made = stage(tmp_path, "opd", "d", **{"s2d/reverse_kl": [0.4, 0.3], "critic/score/mean": [0.0, 0.0]})
    assert [curve.panel for curve in read_curves([made | {"seed": 0}])] == ["kl"]
