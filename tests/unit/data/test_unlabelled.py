"""Prompts without labels: read from any layout, refused with answers, and written by `convert`."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from verl_s2d.data.formats import convert
from verl_s2d.data.formats.column_names import Columns
from verl_s2d.data.pool_key import is_pool_id
from verl_s2d.data.problems import read_problems
from verl_s2d.data.unlabelled import of_sources, pool_table, read_pool, require_distinct
from verl_s2d.errors import UserError


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_of_any_layout_have_ids_of_their_text_alone(tmp_path):
    text = [{"question": "How many?"}, {"question": "Where to?"}]
    chat = [{"messages": [{"role": "user", "content": row["question"]}], "id": 7 + n} for n, row in enumerate(text)]
    plain, named = Columns(template="none"), Columns(question="q", template="none", answer="a")
    read = {
        "text": read_pool(lines(tmp_path / "x.jsonl", text), columns=plain),
        "chat": read_pool(lines(tmp_path / "y.jsonl", chat)),
        "named": read_pool(lines(tmp_path / "z.jsonl", [{"q": r["question"]} for r in text]), columns=named),
    }
    assert [[p.text for p in prompts] for prompts in read.values()] == [["How many?", "Where to?"]] * 3
    assert read["text"][0].id == read["chat"][0].id == read["named"][0].id != read["text"][1].id
    assert all(is_pool_id(p.id) and p.ground_truth == "" for prompts in read.values() for p in prompts)
    assert {p.data_source for p in read["text"]} == {"x"}

    pq.write_table(pool_table(read["chat"]), tmp_path / "written.parquet")
    again = read_pool(tmp_path / "written.parquet")
    assert again == read["chat"] and read_problems(tmp_path / "written.parquet") == again


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([{"question": "a"}, {"question": "b", "answer": "3"}], "answer"),
        ([{"question": "a", "solution": "so 4"}], "solution"),
        ([{"prompt": "a", "reward_model": {"style": "rule", "ground_truth": "5"}}], "reward_model.ground_truth"),
        ([{"prompt": "a", "extra_info": {"index": "1", "solution": "6"}}], "extra_info.solution"),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "7"}]}], "messages"),
        ([{"q": "a", "result": 0}], "result"),
    ],
)
def test_prompts_with_answers_are_refused(tmp_path, rows, column):
    path = lines(tmp_path / "x.jsonl", rows)
    columns = Columns(question="q", answer="result") if "q" in rows[0] else None
    with pytest.raises(UserError, match="have an answer") as caught:
        read_pool(path, columns=columns)
    assert caught.value.key == f"data.prompts: {column}" and caught.value.value == str(path)
    assert "convert" in caught.value.remedy
    assert len(read_pool(path, columns=columns, drop_answers=True)) == len(rows)


@pytest.mark.parametrize(
    "row", [{"question": ""}, {"prompt": []}, {"prompt": [{"role": "user", "content": [{"i": 1}]}]}]
)
def test_prompts_without_text_are_refused(tmp_path, row):
    with pytest.raises(UserError, match="Row 0"):
        read_pool(lines(tmp_path / "x.jsonl", [row]), columns=Columns(template="none") if "question" in row else None)


def test_repeated_and_labelled_prompts_are_refused(tmp_path):
    pool = read_pool(lines(tmp_path / "x.jsonl", [{"prompt": [{"role": "user", "content": c}]} for c in "aba"]))
    with pytest.raises(UserError, match="more than once") as caught:
        require_distinct(pool)
    assert caught.value.value == "a"
    with pytest.raises(UserError, match="labelled"):
        require_distinct(pool[:2], [pool[1]])
    require_distinct(pool[:2], [])
    assert of_sources(pool, ["x"]) == pool and of_sources(pool, []) == pool
    with pytest.raises(UserError, match="data source") as caught:
        of_sources(pool, ["y"])
    assert caught.value.value == "y"


def test_convert_leaves_out_answers_and_other_sets_problems(tmp_path):
    def problem(number):
        return {"question": f"question {number}", "answer": number}

    train = lines(tmp_path / "train.jsonl", map(problem, range(10)))
    lines(tmp_path / "test.jsonl", map(problem, range(20, 22)))
    lines(tmp_path / "more.jsonl", map(problem, [3, 15, 20, 16, 15]))
    options = convert.Options(
        str(train),
        str(tmp_path / "out"),
        holdout=2,
        eval={"test": str(tmp_path / "test.jsonl")},
        prompts=str(tmp_path / "more.jsonl"),
    )
    sets = convert.convert(options)
    made = sets["prompts"]
    assert [p.text.split(" ")[1].split("\n")[0] for p in made.problems] == ["15", "16"]
    held = {p.text for p in sets["held_out"].problems}
    labelled = sum("question 3" in p.text for p in sets["train"].problems)
    assert labelled + sum("question 3" in text for text in held) == 1
    assert (made.rows, made.repeated, made.labelled, made.evaluated) == (5, 1, labelled, 2 - labelled)
    written = pq.read_table(tmp_path / "out" / "prompts.parquet")
    assert {row["ground_truth"] for row in written["reward_model"].to_pylist()} == {""}
    assert read_pool(tmp_path / "out" / "prompts.parquet") == made.problems
