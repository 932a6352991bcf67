"""A newcomer's way: a file of problems, two local models, three commands and no edit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import published_rows
from tests.support.paths import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MAKER = ROOT / "verl_s2d" / "recipe" / "shrink" / "tiny_chat_model.py"


CLI = ("-m", "verl_s2d.cli")


def command(directory: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=directory, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def begin(directory: Path, data: str, *more: str) -> list[list[str]]:
    """Make two models, run `init`, and return the words of the commands that it prints."""
    for name, layers in (("student", 2), ("teacher", 3)):
        command(directory, str(MAKER), "--out", name, "family=qwen3", f"layers={layers}", "steps=20")
    told = command(
        directory, *CLI, "init", "mine", "--student", "student", "--teacher", "teacher", "--data", data, *more
    )
    return [line.split("#")[0].split()[1:] for line in told.splitlines() if line.startswith("verl-s2d ")]


def report(directory: Path) -> dict:
    return json.loads((directory / "runs" / "mine" / "report.json").read_text())


@pytest.mark.timeout(3600)
def test_three_commands_from_a_file_to_a_report(tmp_path):
    with (tmp_path / "train.jsonl").open("w") as stream:
        for i in range(40):
            answer = f"The sum is {30 + 2 * i}.\n#### {(30 + 2 * i) % 10}"
            question = f"What is the last digit of {10 + i} + {20 + i}?"
            print(json.dumps({"question": question, "answer": answer}), file=stream)
    following = begin(tmp_path, "train.jsonl")
    assert [words[0] for words in following] == ["check", "plan", "run"]
    assert "FAIL" not in command(tmp_path, *CLI, *following[0])
    command(tmp_path, *CLI, *following[2])
    assert {row["name"] for row in report(tmp_path)["rows"]} == {"cold-student", "direct-grpo", "half-split"}
    assert set(report(tmp_path)["sets"]) == {"held_out"}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("rows_of", "verifier"), [(published_rows.gsm8k_of_verl, "verl"), (published_rows.math_of_verl, "math")]
)
def test_files_as_verls_examples_write_them_are_trained_on(rows_of, verifier, tmp_path):
    pq.write_table(pa.Table.from_pylist([rows_of(i) for i in range(40)]), tmp_path / "train.parquet")
    check, _, run = begin(tmp_path, "train.parquet", "--verifier", verifier)
    assert "FAIL" not in command(tmp_path, *CLI, *check)
    command(tmp_path, *CLI, *run, "--rows", "direct-grpo")
    (row,) = report(tmp_path)["rows"]
    assert row["ledger"]["verifier_calls"] > 0 and row["ledger"]["updates"] > 0
