"""Result files and reports, from samples whose numbers can be worked out by hand."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.report_rows import ledger, markdown_of, result, stage
from verl_s2d.report.write import Facts, RowResult, build_report
from verl_s2d.stages.evaluate.sample_and_score import GENERATIONS, summarise
from verl_s2d.stages.evaluate.scoring import is_correct


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
    text = markdown_of(build_report([RowResult("x", 0, whole, ledger())]))
    assert "| row | 3 (2 problems) | 5 (1 problems) |\n|---|---|---|\n| x | 25.0 +- 25.0 | 75.0 |" in text
    assert "| x | 41.7 | 61.1 | 66.7 | 2.5 | 33.3 % |" in text, "pass@k, tokens, 4 of 12 truncated"


@pytest.mark.parametrize(
    ("score", "right"),
    [
        *[(1.0, True), (1, True), (True, True), (0.99, False), (0, False), (-1.0, False)],
        *[({"score": 1.0}, True), ({"score": -1.0, "acc": 1}, True), ({"score": 1.0, "acc": False}, False)],
    ],
)
def test_what_counts_as_right(score, right):
    assert is_correct(score) is right


@pytest.mark.parametrize("unsettled", [{}, {"unsettled_calls": 3}])
def test_one_seed(tmp_path, unsettled):
    shared = stage("teacher-rl", "aaaa", critic__score__mean=[0.1, 0.2])
    own = stage("opd", "bbbb", "opd", s2d__reverse_kl=[0.5, 0.4], response_length__mean=[4, 4])
    rows = [
        RowResult("cold", 0, result(0, 1, 2), ledger()),
        RowResult("bridge", 0, result(2, 3, 4), ledger(["a", "b"], updates=4, seconds=90.0), [shared, own]),
        RowResult("full", 0, result(2, 3, 4), ledger(["a"], verifier_calls=1234, **unsettled), [shared]),
    ]
    report = build_report(rows, Facts("mine", {"student": "a/b"}, "verl-s2d run mine.yaml"))
    report.write(tmp_path)
    data = report.data
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(data))
    assert [row["name"] for row in data["rows"]] == ["cold", "bridge", "full"]
    bridge = data["rows"][1]
    assert bridge["sets"]["eval"]["avg"] == 0.75 and bridge["sets"]["eval"]["stderr_over"] == "problems"
    assert bridge["ledger"]["labels_read"] == 2 and bridge["per_seed"][0]["ledger"]["labels_read"] == ["a", "b"]
    assert bridge["per_seed"][0]["stages"] == ["aaaa", "bbbb"]
    first, _, last = data["differences"]
    assert (first["row"], first["minus"], first["mean"]) == ("bridge", "cold", 0.5)
    assert first["interval"] == [0.5, 0.5] and last["mean"] == 0.0

    text = (tmp_path / "report.md").read_text()
    if unsettled:
        assert "| without a verdict |" in text and "| full | 75.0 +- 14.4 | 1 | 1,234 | 3 | 0 |" in text
    else:
        assert "| bridge | 75.0 +- 14.4 | 2 | 0 | 0 | 0 | 4 | 1.5 |" in text
    assert "| bridge - cold | +50.0 | +50.0 to +50.0 |" in text
    assert "| teacher-rl | 1.00 | 50.0 % | 2 | grpo | aaaa | bridge, full |" in text
    assert "- recipe: mine\n- student: a/b\n" in text and "- repeat: verl-s2d run mine.yaml" in text
    plots = [name for name in report.files if name.endswith(".svg")]
    assert {"plots/accuracy-0.svg", "plots/score.svg", "plots/reverse-kl.svg", "plots/length.svg"} <= set(plots)
    for name in report.files:
        assert (tmp_path / name).is_file()
    for name in plots:
        assert f"({name})" in text and "<svg" in (tmp_path / name).read_text()


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
    # 66.7 +- 4.303 x 8.33.
    assert "66.7 +- 8.3 (50.0, 75.0, 75.0), 30.8 to 102.5" in markdown_of(report)
    assert "+41.7" in report.table() and "+25.0, +50.0, +50.0" in report.table()
    assert json.loads(report.to_json()) == report.data


def test_two_seeds_have_no_interval_and_a_missing_row_is_left_out():
    rows = [RowResult(n, s, result(0, s + 1), ledger()) for n, s in (("a", 0), ("a", 1), ("b", 1), ("b", 0), ("c", 1))]
    differences = {(d["row"], d["minus"]): d for d in build_report(rows).data["differences"]}
    assert differences["b", "a"]["interval"] is None and "| b - a | +0.0 | - |" in markdown_of(build_report(rows))
    assert [s["seed"] for s in differences["c", "a"]["per_seed"]] == [1]


def test_rows_over_different_sets_and_problems():
    rows = [
        RowResult("a", 0, result(1, 2), ledger()),
        RowResult("b", 0, result(1, 2, 3), ledger()),
        RowResult("c", 0, result(1, name="other"), ledger()),
    ]
    report = build_report(rows)
    assert report.data["differences"] == []
    assert "| c | - | 25.0 |" in markdown_of(report)


def test_published_results_stand_beside_the_rows():
    rows = [RowResult(name, 0, result(1, 2), ledger()) for name in ("a", "b")]
    text = markdown_of(
        build_report(rows, Facts(published={"b": {"eval": 71.25, "elsewhere": 1.0}, "c": {"eval": 2.0}}))
    )
    assert "| row | avg@4 | published | labels |" in text
    assert "| a | 37.5 +- 12.5 | - | 0 |" in text and "| b | 37.5 +- 12.5 | 71.2 | 0 |" in text
    assert "ublished" not in markdown_of(build_report(rows))


def test_a_report_of_nothing_and_of_a_row_given_twice():
    row = RowResult("a", 0, result(1, 2), ledger())
    for rows in ([], [row, row]):
        with pytest.raises(ValueError):
            build_report(rows)


def test_stages_are_listed_once_in_the_order_in_which_they_began():
    early, late = stage("b", "bb") | {"began": 10.0, "ended": 70.0}, stage("a", "aa") | {"began": 80.0, "ended": 140.0}
    versions = [{"verl": "0.9.1"}, {"verl": "0.9.2"}]
    rows = [
        RowResult("x", 0, result(1, 2), ledger(), [late | {"name": "a (seed 0)", "versions": versions[0]}]),
        RowResult("x", 1, result(1, 2), ledger(), [early, late | {"name": "a (seed 1)"}]),
        RowResult("y", 1, result(1, 2), ledger(), [early | {"versions": versions[1]}]),
    ]
    data = build_report(rows).data
    assert [(s["name"], s["rows"], s["seeds"]) for s in data["stages"]] == [
        ("b", ["x", "y"], [1]),
        ("a", ["x"], [0, 1]),
    ]
    assert data["run"]["began"] == 10.0 and data["run"]["ended"] == 140.0 and data["run"]["seconds"] == 120.0
    assert data["run"]["versions"] == {"verl": ["0.9.1"]}, "of a stage seen twice the first is taken"


def test_warnings_are_there_when_a_stage_gave_reason():
    def reported(*alarms):
        made = stage("opd", "dd", "opd", s2d__reverse_kl=[0.4, 0.3]) | {"alarms": list(alarms)}
        return build_report([RowResult("x", 0, result(1, 2), ledger(), [made])])

    report = reported({"step": 2, "text": "not finite: actor/loss at step 2"})
    (alarm,) = report.data["alarms"]
    assert alarm == {"stage": "opd", "seeds": [0], "step": 2, "text": "not finite: actor/loss at step 2"}
    assert "not finite: actor/loss" in report.table() and "## Warnings" in markdown_of(report)
    quiet = reported()
    assert quiet.data["alarms"] == [] and "Warnings" not in markdown_of(quiet) + quiet.table()


def test_names_that_are_markup_stay_text():
    report = build_report([RowResult("[red]|<b>\x1b[31m`\ud800", 0, result(1, 2), ledger())])
    text = markdown_of(report)
    assert r"| \[red\]\|&lt;b&gt;\ufffd\[31m\`\ufffd | 37.5".replace(r"\ufffd", "\ufffd") in text
    assert "[red]|<b>\ufffd[31m`\ufffd" in report.table()
