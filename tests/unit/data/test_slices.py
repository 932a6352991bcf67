"""Slices: validation, disjointness, determinism, and that no answer is left in the answer-free files."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.data.problems import check_disjoint, read_problems
from verl_s2d.data.slices import Options, choose, slices_digest, write_slices
from verl_s2d.errors import UserError

ANSWER = "secret-answer-"


def problem(number: int, text: str | None = None, index: str | None = None) -> dict:
    return {
        "prompt": [{"role": "user", "content": text or f"question {number}"}],
        "data_source": "test",
        "reward_model": {"style": "rule", "ground_truth": f"{ANSWER}{number}"},
        "extra_info": {"index": index or f"p{number}", "entry": f"{ANSWER}{number}"},
        "solution": f"{ANSWER}{number}",
    }


def write(path, rows):
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"pandas": f"{ANSWER}in the metadata"})
    pq.write_table(table, path)
    return str(path)


@pytest.fixture
def train(tmp_path):
    return write(tmp_path / "train.parquet", [problem(i) for i in range(20)])


ids = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=60, unique=True)


@given(ids, st.integers(0, 5), st.data())
def test_halves_are_disjoint_and_make_up_the_whole(names, seed, data):
    labels = data.draw(st.integers(2, len(names)))
    slices = choose(names, labels, seed)
    first, second = set(slices["1h"]), set(slices["2h"])
    assert not first & second
    assert slices["all"] == slices["1h"] + slices["2h"]
    assert first | second <= set(names) and len(slices["all"]) == len(set(slices["all"])) == labels
    assert len(first) == labels // 2


@given(ids, st.integers(0, 5), st.randoms())
def test_choice_does_not_depend_on_the_order_of_the_file(names, seed, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    assert choose(names, None, seed) == choose(shuffled, None, seed)


def test_fewer_labels_are_a_subset_of_more_and_seeds_differ():
    names = [f"p{i}" for i in range(100)]
    assert set(choose(names, 40, 0)["all"]) < set(choose(names, 60, 0)["all"])
    assert choose(names, 40, 0) != choose(names, 40, 1)


def test_choice_is_the_same_for_ever():
    digest = slices_digest(choose([f"p{i}" for i in range(20)], 10, 0))
    assert digest == "45b11d41451ac8e57d5b530f7fc201ed331ea3b3ff5aab53f727bbf430877c77"


def test_files(train, tmp_path):
    slices = write_slices(Options(train=train, out=str(tmp_path / "out"), labels=9, seed=3))
    summary = json.loads((tmp_path / "out/slices.json").read_text())
    assert summary["slices"] == slices and summary["digest"] == slices_digest(slices)
    for name, chosen in slices.items():
        labelled = read_problems(tmp_path / f"out/{name}.parquet")
        prompts = read_problems(tmp_path / f"out/{name}-prompts.parquet")
        assert [p.id for p in labelled] == [p.id for p in prompts] == chosen
        assert [p.messages for p in labelled] == [p.messages for p in prompts]
        assert all(p.ground_truth == f"{ANSWER}{p.id[1:]}" for p in labelled)
        assert {p.ground_truth for p in prompts} == {""} and all(set(p.extra_info) == {"index"} for p in prompts)


def test_no_answer_is_left_in_the_answer_free_files(train, tmp_path):
    write_slices(Options(train=train, out=str(tmp_path)))
    for path in tmp_path.glob("*-prompts.parquet"):
        # Uncompressed, so that text in any column, statistic or metadata shows as bytes.
        pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=False)
        assert ANSWER.encode() not in path.read_bytes()
    assert len(list(tmp_path.glob("*-prompts.parquet"))) == 3


def test_integer_ids_become_text(tmp_path):
    rows = [problem(i) | {"extra_info": {"index": i}} for i in range(4)]
    slices = write_slices(Options(train=write(tmp_path / "t.parquet", rows), out=str(tmp_path)))
    assert set(slices["all"]) == {"0", "1", "2", "3"}


@pytest.mark.parametrize(
    ("rows", "key", "said"),
    [
        ([], "train", "no rows"),
        ([{"prompt": "x"}], "train", "lacks a column of the answer"),
        ([problem(0), problem(1, index="p0")], "train: extra_info.index", "more than once"),
        ([problem(0), problem(1, text="question  0 ")], "train: prompt", "more than once"),
    ],
)
def test_unusable_training_files(tmp_path, rows, key, said):
    schema = pa.Table.from_pylist([problem(0)]).schema
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows) if rows else schema.empty_table(), path)
    with pytest.raises(UserError, match=said) as caught:
        write_slices(Options(train=str(path), out=str(tmp_path / "out")))
    assert caught.value.key == key and caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_unreadable_training_file(tmp_path):
    (tmp_path / "broken.parquet").write_text("no parquet")
    for name in ("absent.parquet", "broken.parquet"):
        with pytest.raises(UserError, match="cannot be read"):
            write_slices(Options(train=str(tmp_path / name), out=str(tmp_path / "out")))


@pytest.mark.parametrize("labels", [0, 1, 21])
def test_impossible_numbers_of_labels(train, tmp_path, labels):
    with pytest.raises(UserError) as caught:
        write_slices(Options(train=train, out=str(tmp_path / "out"), labels=labels))
    assert caught.value.key == "labels" and caught.value.value == labels


def test_evaluation_problems_inside_training(train, tmp_path):
    evaluation = write(tmp_path / "eval.parquet", [problem(100), problem(101, text=" question 7")])
    with pytest.raises(UserError, match="1 evaluation problems") as caught:
        write_slices(Options(train=train, out=str(tmp_path / "out"), eval={"math": evaluation}))
    assert caught.value.key == "eval.math" and caught.value.value == "p101"
    same_ids = write(tmp_path / "other.parquet", [problem(1, text="another question")])
    check_disjoint(read_problems(train), {"other": read_problems(same_ids)})
