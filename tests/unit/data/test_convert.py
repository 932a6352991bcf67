"""`verl-s2d convert`: files of others to training and evaluation files that a recipe takes."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.published_rows import LAYOUTS, deepscaler, gsm8k, math_of_verl
from verl_s2d.cli import main
from verl_s2d.data.formats.verl_columns import is_verl
from verl_s2d.data.problems import check_disjoint, read_problems


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(tmp_path, layout, capsys):
    data = write(tmp_path / "in.jsonl", [LAYOUTS[layout](i) for i in range(12)])
    assert main(["convert", data, str(tmp_path / "out"), "holdout=4"]) == 0
    train, held = (read_problems(tmp_path / "out" / f"{name}.parquet") for name in ("train", "held_out"))
    assert (len(train), len(held)) == (8, 4)
    check_disjoint(train, {"held": held})
    assert all(is_verl(pq.read_table(tmp_path / "out" / f"{name}.parquet")) for name in ("train", "held_out"))
    assert "8 problems" in (told := capsys.readouterr().out) and train[0].ground_truth in told


def test_the_command_of_the_readme(tmp_path):
    data = write(tmp_path / "in.jsonl", [{"q": f"{i} + 1?", "a": f"so #### {i + 1}"} for i in range(6)])
    given = ["question=q", "answer=a", "after=####", "template=boxed", "holdout=2", "data_source=sums"]
    assert main(["convert", data, str(tmp_path / "out"), *given]) == 0
    problem = read_problems(tmp_path / "out" / "train.parquet")[0]
    assert problem.data_source == "sums" and problem.extra_info["solution"] == f"so #### {problem.ground_truth}"
    assert problem.messages[0]["content"].endswith(r"\boxed{}.")
    again = read_problems(tmp_path / "out" / "held_out.parquet")
    assert main(["convert", data, str(tmp_path / "again"), *given]) == 0
    assert read_problems(tmp_path / "again" / "held_out.parquet") == again


def test_rows_that_are_left_out_are_counted(tmp_path, capsys):
    rows = [deepscaler(i) for i in range(8)]
    rows += [
        rows[0],
        rows[1] | {"answer": "7"},
        rows[2] | {"problem": "New?", "answer": ""},
        rows[3] | {"problem": None},
    ]
    held = write(tmp_path / "eval.jsonl", [gsm8k(7) | {"question": rows[7]["problem"]}, gsm8k(99)])
    data = write(tmp_path / "in.jsonl", rows)
    assert main(["convert", data, str(tmp_path / "out"), f"eval.test={held}"]) == 0
    assert "6 problems (12 rows; left out: 2 unusable, 1 repeated, 2 disputed, 1 evaluated)" in capsys.readouterr().out
    train = read_problems(tmp_path / "out" / "train.parquet")
    check_disjoint(train, {"test": read_problems(tmp_path / "out" / "test.parquet")})


def test_ids_that_two_files_of_verl_share_are_made_anew(tmp_path):
    rows = [math_of_verl(i) | {"extra_info": {"split": "train", "index": i % 2}} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    assert main(["convert", str(tmp_path / "in.parquet"), str(tmp_path / "out")]) == 0
    assert len({p.id for p in read_problems(tmp_path / "out" / "train.parquet")}) == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["holdout=5"], "key:    holdout"),
        (["question=problems"], "key:    columns.question"),
        (["column=x"], "Unknown argument"),
        (["eval.train=x.jsonl"], "This name is taken"),
        (["after=####"], "No problem is left"),
    ],
)
def test_refusals(tmp_path, given, said, capsys):
    data = write(tmp_path / "in.jsonl", [deepscaler(i) for i in range(6)])
    assert main(["convert", data, str(tmp_path / "out"), *given]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_directory_that_a_run_may_read_is_not_overwritten(tmp_path, capsys):
    data = write(tmp_path / "in.jsonl", [deepscaler(i) for i in range(6)])
    assert main(["convert", data, str(tmp_path / "out")]) == 0
    assert main(["convert", data, str(tmp_path / "out"), "template=dapo"]) == 2
    assert "another directory" in capsys.readouterr().err
