"""Problems that a row gained and lost: chosen by hand, read from a real file of samples, shown as text."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.report_rows import HOSTILE, ledger, markdown_of
from verl_s2d.report.by_row.examples import MOST_TEXT, read_answers
from verl_s2d.report.write import RowResult, build_report
from verl_s2d.stages.evaluate.sample_and_score import GENERATIONS, summarise


def samples(name: str, right: dict[str, int], *, word: str = "") -> list[dict]:
    """Four samples of each problem, so many of them right; a right one ends in its truth."""
    return [
        {
            **{"set": "eval", "id": i, "sample": n, "response_ids": [1], "finish_reason": "stop", "correct": n < count},
            **{"level": None, "unsettled": False, "data_source": "x", "prompt": f"What is\n{i}?{word}"},
            **{"ground_truth": f"truth-{i}", "response": f"{name} says{word} {'right' if n < count else 'wrong'}"},
        }
        for i, count in right.items()
        for n in range(4)
    ]


def row(directory, name: str, right: dict[str, int], columns=None, **more) -> RowResult:
    made, file = samples(name, right, **more), directory / f"{name}.parquet"
    table = pa.Table.from_pylist(made, GENERATIONS)
    pq.write_table(table.select(columns) if columns else table, file)
    return RowResult(name, 0, summarise(made, 4), ledger(), answers=partial(read_answers, file))


DIRECT = {"a": 0, "b": 1, "c": 4, "d": 2, "e": 2, "f": 0, "g": 1}
BEST = {"a": 4, "b": 4, "c": 1, "d": 2, "e": 3, "f": 4, "g": 1}


def test_what_was_gained_most_and_what_was_lost_side_by_side(tmp_path):
    report = build_report([row(tmp_path, "direct-grpo", DIRECT), row(tmp_path, "best", BEST)])
    found = report.data["examples"]
    assert [(e["kind"], e["id"]) for e in found] == [("gained", "a"), ("gained", "f"), ("gained", "b"), ("lost", "c")]
    first, lost = found[0], found[-1]
    assert (first["prompt"], first["ground_truth"]) == ("What is a?", "truth-a")
    assert first["answers"] == {
        "best": {"right": 4, "of": 4, "response": "best says right"},
        "direct-grpo": {"right": 0, "of": 4, "response": "direct-grpo says wrong"},
    }
    assert lost["answers"]["best"]["response"] == "best says wrong" and lost["answers"]["direct-grpo"]["right"] == 4
    text = markdown_of(report)
    assert "| problem | prompt | truth | best | direct-grpo |" in text
    assert (
        "| gained: b | What is b? | truth-b | 4 of 4 right: best says right | 1 of 4 right: direct-grpo says wrong |"
        in text
    )


def test_long_answers_keep_their_end_and_nothing_is_markup(tmp_path):
    word = f"{'x' * 500}{HOSTILE}\x1b[31m"
    rows = [row(tmp_path, "direct-grpo", DIRECT, word=word), row(tmp_path, "best", BEST, word=word)]
    report = build_report(rows)
    response = report.data["examples"][0]["answers"]["best"]["response"]
    assert response.startswith("… ") and len(response) == MOST_TEXT + 2 and response.endswith("right")
    report.write(tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert "Problems gained and lost" in page and "<script" not in page and "\x1b" not in page and "\ufffd[31m" in page


def test_rows_that_answer_alike_have_no_examples(tmp_path):
    """Equal shares of right samples on every problem, as of two rows that answer nothing right."""
    report = build_report([row(tmp_path, "direct-grpo", DIRECT), row(tmp_path, "best", DIRECT)])
    assert report.data["examples"] == [] and "gained and lost" not in markdown_of(report)


@pytest.mark.parametrize("columns", [["set", "id", "response", "correct"], None])
def test_files_without_prompts_and_unreadable_ones_have_no_examples(tmp_path, columns):
    rows = [row(tmp_path, "direct-grpo", DIRECT, columns), row(tmp_path, "best", BEST)]
    if columns is None:
        (tmp_path / "direct-grpo.parquet").write_bytes(b"parquet")
    report = build_report(rows)
    assert report.data["examples"] == [] and "gained and lost" not in markdown_of(report)
    (tmp_path / "direct-grpo.parquet").unlink()
    assert build_report(rows).data["examples"] == []
