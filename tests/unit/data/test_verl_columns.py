"""Data files as people have them become verl's columns: every published layout, every format, or a refusal."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.published_rows import LAYOUTS, deepscaler, gsm8k, gsm8k_of_verl, math_of_verl, openr1
from verl_s2d.data.formats.column_names import Columns
from verl_s2d.data.formats.verl_columns import is_verl
from verl_s2d.data.problems import read_problems, read_table
from verl_s2d.errors import UserError

COUNT = 6
FORMATS = ("parquet", "jsonl", "json", "jsonl.gz")


def write(path, rows):
    """Write rows in the format of the path's ending."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n"
        (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8").write(text)
    return path


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_every_format(tmp_path, layout, ending):
    path = write(tmp_path / f"train.{ending}", [LAYOUTS[layout](i) for i in range(COUNT)])
    problems = read_problems(path)
    assert [p.ground_truth for p in problems] == [str(i + 1000) for i in range(COUNT)]
    for i, problem in enumerate(problems):
        (message,) = problem.messages
        assert set(message) == {"role", "content"} and message["role"] == "user"
        assert str(i) in message["content"] and problem.extra_info["index"] is not None
    assert len({p.id for p in problems}) == COUNT
    assert "generations" not in problems[0].extra_info and "messages" not in problems[0].extra_info
    assert is_verl(read_table(path))


@pytest.mark.parametrize("layout", [gsm8k_of_verl, math_of_verl])
def test_files_of_verls_examples_stay_as_they_are(tmp_path, layout):
    rows = [layout(i) for i in range(COUNT)]
    assert read_table(write(tmp_path / "train.parquet", rows)).to_pylist() == rows


def test_csv_keeps_answers_as_they_are_written(tmp_path):
    rows = [
        {"id": f"p{i}", "question": f'Is it {i},\n"then"?', "answer": text} for i, text in enumerate(("007", "1e16"))
    ]
    problems = read_problems(write(tmp_path / "train.csv", rows))
    assert [p.ground_truth for p in problems] == ["007", "1e16"] and [p.id for p in problems] == ["p0", "p1"]
    assert '"then"?' in problems[0].messages[0]["content"]


def test_ids_are_of_the_text_and_known_ones_are_kept(tmp_path):
    rows = [deepscaler(i) for i in range(COUNT)]
    ids = [p.id for p in read_problems(write(tmp_path / "a.jsonl", rows))]
    turned = [row | {"answer": "5"} for row in reversed(rows[1:])]
    assert [p.id for p in read_problems(write(tmp_path / "b.parquet", turned))] == ids[:0:-1]
    assert [p.id for p in read_problems(write(tmp_path / "c.jsonl", [openr1(i) for i in range(3)]))] == [
        "uuid-0",
        "uuid-1",
        "uuid-2",
    ]
    repeated = [row | {"id": 1} for row in rows]
    assert [p.id for p in read_problems(write(tmp_path / "d.jsonl", repeated))] == ids
    some = [gsm8k_of_verl(i) | {"extra_info": {"index": None if i == 2 else i}} for i in range(4)]
    assert [p.id for p in read_problems(write(tmp_path / "e.parquet", some))][3] == "3"


def test_named_columns(tmp_path):
    rows = [{"q": f"What is {i} + 1?", "a": f"so it is => {i + 1}", "nr": i + 10, "hard": i > 1} for i in range(4)]
    names = Columns(question="q", answer="a", after="=>", id="nr", data_source="sums", template="dapo")
    first = read_problems(write(tmp_path / "x.jsonl", rows), columns=names)[0]
    assert (first.id, first.ground_truth, first.data_source) == ("10", "1", "sums")
    assert first.extra_info["hard"] is False and first.extra_info["solution"] == "so it is => 1"
    assert first.messages[0]["content"].startswith("Solve the following") and "0 + 1?" in first.messages[0]["content"]
    # Evaluation files may have other columns; the template is the same.
    other = write(tmp_path / "eval.jsonl", [gsm8k(i) for i in range(2)])
    held = read_problems(other, columns=names, own_columns=True)
    assert held[0].messages[0]["content"].startswith("Solve the following")
    with pytest.raises(UserError, match="no such column") as caught:
        read_problems(other, columns=names)
    assert caught.value.key == "columns.question" and "question" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "truths"),
    [
        ([72.0, 2e-05, 1e16, 0.1 + 0.2, -3.50], ["72", "0.00002", "10000000000000000", "0.3", "-3.5"]),
        ([5, 2.5, "x", True], ["5", "2.5", "x", "true"]),
        ([r"$\boxed{\frac{1}{2}}$", r"a \boxed{3} b \boxed{4}", r"\frac{1}{2}"], [r"\frac{1}{2}", "4", r"\frac{1}{2}"]),
        (["a #### 1,234", "b #### x+1", "#### -7"], ["1234", "x+1", "-7"]),
        (["a #### 1", "b"], ["a #### 1", "b"]),
    ],
)
def test_answers(tmp_path, values, truths):
    rows = [{"question": f"What is number {i}?", "answer": value} for i, value in enumerate(values)]
    assert [p.ground_truth for p in read_problems(write(tmp_path / "x.jsonl", rows))] == truths


@pytest.mark.parametrize("form", [r"Write \boxed{5}.", 'Write it after "####".', "End with Answer: 5"])
def test_problems_that_ask_for_a_form_keep_it(tmp_path, form):
    rows = [{"question": f"What is {i}? {form}", "answer": "5"} for i in range(2)]
    path = write(tmp_path / "x.jsonl", rows)
    assert [p.messages[0]["content"] for p in read_problems(path)] == [row["question"] for row in rows]
    plain = write(tmp_path / "y.jsonl", [{"question": "What is 5?", "answer": "5"}])
    assert read_problems(plain)[0].messages[0]["content"].endswith(r"within \boxed{}.")
    assert read_problems(plain, columns=Columns(template="none"))[0].messages[0]["content"] == "What is 5?"


@pytest.mark.parametrize(
    ("rows", "columns", "key", "said"),
    [
        ([{"question": "a", "answer": ""}], None, "data: answer", "no answer"),
        ([{"question": "a", "answer": float("nan")}], None, "data: answer", "no answer"),
        ([{"question": "a", "answer": "x 5"}], {"after": "####"}, "data: answer", "no answer after '####'"),
        ([{"frage": "a", "antwort": "b"}], None, "data", "frage, antwort"),
        ([{"frage": "a", "antwort": "b"}], {"question": "frag"}, "columns.question", "Did you mean frage"),
        ([{"question": "a", "answer": "b"}], {"template": "plain"}, "template", "Choose from"),
        ([{"question": None, "answer": "b"}, {"question": "a", "answer": "b"}], None, "data: prompt", "Row 0"),
        ([], None, "data", "no rows"),
    ],
)
def test_refusals(tmp_path, rows, columns, key, said):
    with pytest.raises(UserError, match=said) as caught:
        read_problems(write(tmp_path / "x.jsonl", rows), columns=columns and Columns(**columns))
    assert caught.value.key == key and caught.value.remedy


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.jsonl", '{"question": "a"', "line 1"),
        ("x.jsonl", "[1]", "line 1 is not an object"),
        ("x.json", "[1, 2]", "not a list of objects"),
        ("x.csv", "question,answer\na\n", "line 2"),
        ("x.xlsx", "", "Known: .parquet, .jsonl"),
        ("x", "", "format of the data file is unknown"),
    ],
)
def test_unreadable_files(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        read_table(tmp_path / name)
