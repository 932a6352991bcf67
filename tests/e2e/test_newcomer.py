"""A newcomer's way: a file of questions and answers, two local models, three commands and no edit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MAKER = ROOT / "verl_s2d" / "recipe" / "shrink" / "tiny_chat_model.py"


@pytest.mark.timeout(3600)
def test_three_commands_from_a_file_to_a_report(tmp_path):
    def command(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    for name, layers in (("student", 2), ("teacher", 3)):
        command(str(MAKER), "--out", name, "family=qwen3", f"layers={layers}", "steps=20")
    with (tmp_path / "train.jsonl").open("w") as stream:
        for i in range(40):
            answer = f"The sum is {30 + 2 * i}.\n#### {(30 + 2 * i) % 10}"
            print(
                json.dumps({"question": f"What is the last digit of {10 + i} + {20 + i}?", "answer": answer}),
                file=stream,
            )

    cli = ("-m", "verl_s2d.cli")
    told = command(*cli, "init", "mine", "--student", "student", "--teacher", "teacher", "--data", "train.jsonl")
    following = [line.split("#")[0].split()[1:] for line in told.splitlines() if line.startswith("verl-s2d ")]
    assert [words[0] for words in following] == ["check", "plan", "run"]
    assert "FAIL" not in command(*cli, *following[0])
    command(*cli, *following[2])
    report = json.loads((tmp_path / "runs" / "mine" / "report.json").read_text())
    assert {row["name"] for row in report["rows"]} == {"cold-student", "direct-grpo", "half-split"}
    assert set(report["sets"]) == {"held_out"}
