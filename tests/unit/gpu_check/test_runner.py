"""gpu-check's frame: parts in processes of their own, limits, exit codes, the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.gpu_check_part import FakePart
from tests.support.paths import ROOT
from verl_s2d import cli
from verl_s2d.gpu_check import command, part_registry
from verl_s2d.gpu_check.figures import STATES, Recorder, read_checks


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run gpu-check with these fake parts (name -> limit in seconds): exit code, printed text, report."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(*arguments: str, **parts: int) -> tuple[int, str, dict]:
        monkeypatch.setattr(part_registry, "PARTS", tuple(FakePart(n, "a test", s) for n, s in parts.items()))
        out = tmp_path / "report.json"
        words = ["gpu-check", "--device", "cpu", "--out", str(out), "--keep", str(tmp_path / "kept"), *arguments]
        code = cli.main(words)
        return code, capsys.readouterr().out, json.loads(out.read_text())

    return run


def test_parts_that_pass_give_exit_code_0_and_a_report(check):
    code, text, report = check(passes=60, passes2=60)
    assert code == 0
    assert "ok   passes: seconds  1 s  (<= 2 s)" in text.splitlines()
    assert {"format", "verl_s2d", "time", "device", "model", "versions", "ok", "seconds", "parts"} == set(report)
    assert report["ok"] and report["device"] == "cpu" and report["versions"]["verl"]
    assert [part["name"] for part in report["parts"]] == ["passes", "passes2"]
    for part in report["parts"]:
        assert set(part) == {"name", "state", "seconds", "limit_seconds", "checks", "log_tail"}
        assert part["state"] == "ok" and part["log_tail"] == []
        for found in part["checks"]:
            assert set(found) == {"part", "name", "state", "figure", "limit", "value"} and found["state"] in STATES
    assert report["parts"][0]["checks"][1]["value"] == "nan", "a figure that JSON does not know"


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("fails", "FAIL fails: speed  1 tokens/s"), ("raises", "RuntimeError: the reason"), ("dies", "exit code 3")],
)
def test_a_part_that_fails_gives_exit_code_1_and_the_next_still_runs(check, behaviour, said):
    code, text, report = check(**{behaviour: 60, "passes": 60})
    assert code == 1 and said in text and not report["ok"]
    assert [part["state"] for part in report["parts"]] == ["failed", "ok"]
    assert f"FAIL: {behaviour};" in text.splitlines()[-1]


def test_a_part_that_hangs_is_killed_with_all_that_it_started(check, tmp_path):
    code, text, report = check(hangs=5, passes=60)
    assert code == 1
    assert [part["state"] for part in report["parts"]] == ["killed", "ok"]
    assert "ok   hangs: began" in text, "what it found before is kept"
    assert "FAIL hangs: limit  killed after" in text and "(<= 5 s)" in text
    child = Path("/proc") / (tmp_path / "kept" / "child").read_text()
    assert not child.exists() or (child / "stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_second_check_in_the_same_directory_does_not_find_the_first_ones_checks(check):
    assert [len(part["checks"]) for _ in range(2) for part in check(passes=60)[2]["parts"]] == [2, 2]


def test_chosen_parts_run_in_the_order_of_the_list(check):
    _, _, report = check("--parts", "passes2,passes", passes=60, fails=60, passes2=60)
    assert [part["name"] for part in report["parts"]] == ["passes", "passes2"]


def test_an_unknown_part_is_refused_with_the_known_ones(capsys, tmp_path):
    assert cli.main(["gpu-check", "--device", "cpu", "--parts", "machine,engine", "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert "Unknown part." in said and "'engine'" in said and "Use some of machine, registration, fork" in said
    assert not (tmp_path / "r").exists()


def test_without_a_gpu_it_says_so_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "accelerator_here", lambda: False)
    monkeypatch.setattr(command, "run_parts", lambda *_, **__: pytest.fail("a part was started"))
    assert cli.main(["gpu-check", "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert "No GPU is visible on this machine" in said and "--device cpu" in said


@pytest.mark.parametrize("option", ["--model", "--recipe"])
def test_what_is_not_there_is_refused(option, capsys, tmp_path):
    assert cli.main(["gpu-check", "--device", "cpu", option, str(tmp_path / "none"), "--out", str(tmp_path / "r")]) == 2
    assert f"key:    {option}" in capsys.readouterr().err


def test_every_part_has_a_module_with_a_run():
    names = [part.name for part in part_registry.PARTS]
    assert len(set(names)) == len(names)
    directory = ROOT / "verl_s2d" / "gpu_check" / "parts"
    assert {path.stem for path in directory.glob("*.py")} - {"__init__"} == set(names)
    for name in names:
        assert "\ndef run(settings: Settings, record: Recorder) -> None:\n" in (directory / f"{name}.py").read_text()


def test_a_figure_that_is_not_a_number_keeps_no_limit(tmp_path):
    record = Recorder("part", tmp_path / "checks")
    record.at_most("error", float("nan"), 1.0)
    record.at_least("speed", float("nan"), 1.0)
    record.at_most("equal", 1, 1)
    assert [found.state for found in read_checks(tmp_path / "checks")] == ["failed", "failed", "ok"]
