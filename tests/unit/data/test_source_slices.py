"""Slices of some data sources: parts of the same slices of all sources, refused where one would be empty."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d import arguments
from verl_s2d.data.problems import read_problems
from verl_s2d.data.slices import Options, choose, restricted, write_slices
from verl_s2d.errors import UserError


def write(path, sources):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "data_source": source,
            "reward_model": {"style": "rule", "ground_truth": str(number)},
            "extra_info": {"index": f"p{number}"},
        }
        for number, source in enumerate(sources)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@given(st.lists(st.sampled_from("abc"), min_size=40, max_size=80), st.integers(0, 5))
def test_slices_of_all_sources_make_up_the_whole_slices(sources, seed):
    source_of = {str(number): source for number, source in enumerate(sources)}
    whole = choose(list(source_of), None, seed)
    try:
        parts = [restricted(whole, source_of, [source]) for source in sorted(set(sources))]
    except UserError as error:
        assert error.key == "data_source" and "no problem" in error.problem
        return
    for name, ids in whole.items():
        assert sorted(ids) == sorted(i for part in parts for i in part[name])
        assert all([i for i in ids if i in set(part[name])] == part[name] for part in parts)


def test_files_hold_the_problems_of_their_sources_alone(tmp_path):
    train = write(tmp_path / "train.parquet", ["math/a", "math/b", "code"] * 10)
    whole = write_slices(Options(train=train, out=str(tmp_path / "all"), labels=20, seed=3))
    line = arguments.plain_arguments(
        {"train": train, "out": str(tmp_path / "maths"), "labels": 20, "seed": 3, "data_sources": ["math/a", "math/b"]}
    )
    maths = write_slices(arguments.parse(line, Options))
    for name in ("all", "1h", "2h"):
        for suffix in ("", "-prompts"):
            problems = read_problems(tmp_path / "maths" / f"{name}{suffix}.parquet")
            assert [p.id for p in problems] == maths[name] and {p.data_source for p in problems} == {"math/a", "math/b"}
        assert maths[name] == [i for i in whole[name] if int(i[1:]) % 3 < 2]
    assert json.loads((tmp_path / "maths" / "slices.json").read_text())["labels"] == len(maths["all"])


@pytest.mark.parametrize(
    ("sources", "value", "said"), [(["code", "cod"], "cod", "No training problem"), (["rare"], "rare", "no problem")]
)
def test_sources_without_problems_are_refused(tmp_path, sources, value, said):
    train = write(tmp_path / "train.parquet", ["code"] * 9 + ["rare"])
    with pytest.raises(UserError, match=said) as caught:
        write_slices(Options(train=train, out=str(tmp_path / "out"), data_sources=sources))
    assert caught.value.key == "data_source" and caught.value.value == value and caught.value.remedy
    assert not (tmp_path / "out").exists()
