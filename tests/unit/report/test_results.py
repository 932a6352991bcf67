"""The report of a run directory, read from its manifests without the recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.report_rows import ledger, result
from verl_s2d import cli
from verl_s2d.errors import UserError
from verl_s2d.report.inputs import found_rows, recorded_facts


def write_stage(run_dir: Path, kind: str, digest: str, name: str, ended: float, inputs=(), labels=(), **files) -> Path:
    """A finished stage; inputs are (kind, digest)."""
    directory = run_dir / "stages" / f"{kind}-{digest}"
    (directory / "attempts").mkdir(parents=True)
    (directory / "metrics").mkdir()
    manifest = {
        **{"kind": kind, "name": name, "digest": digest, "settings": {"seed": 0, "response_tokens": 8}},
        **{"inputs": {f"role{i}": {"kind": k, "digest": d} for i, (k, d) in enumerate(inputs)}},
        **{
            "ledger": ledger(labels, updates=2, seconds=30.0),
            "seconds": 30.0,
            "attempts": 1,
            "versions": {"verl": "1"},
            "outputs": [],
        },
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "attempts/attempt-1.json").write_text(json.dumps({"started": ended - 30, "ended": ended, "exit": 0}))
    for file, text in files.items():
        (directory / file.replace("__", "/").replace("DOT", ".")).write_text(text)
    return directory


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """Two rows that share a student; one of them evaluated twice."""
    metrics = "\n".join(json.dumps({"step": s, "data": {"critic/score/mean": s / 10}}) for s in (1, 2))
    write_stage(tmp_path, "script", "s0", "student", 30.0)
    write_stage(
        *(tmp_path, "grpo", "g0", "student-rl-all", 60.0, [("script", "s0")], ["a", "b"]),
        **{"metrics__attempt-1DOTjsonl": metrics},
    )
    for digest, ended, right in (("e1", 90.0, 1), ("e2", 150.0, 3)):
        evaluation = (tmp_path, "evaluate", digest, "evaluate-direct-grpo", ended, [("grpo", "g0"), ("script", "s0")])
        write_stage(*evaluation, resultDOTjson=json.dumps(result(right, right)))
    write_stage(
        *(tmp_path, "evaluate", "e3", "evaluate-cold-student (seed 0)", 120.0, [("script", "s0")]),
        resultDOTjson=json.dumps(result(0, 1)),
    )
    return tmp_path


def test_rows_are_found_and_the_newest_counts(run_dir):
    cold, direct = found_rows(run_dir)
    assert (cold.name, direct.name, direct.seed) == ("cold-student", "direct-grpo", 0), "in the order of the rows"
    assert direct.result["sets"]["eval"]["avg"] == 0.75
    assert [s["digest"] for s in direct.stages] == ["s0", "g0", "e2"]
    assert direct.ledger["labels_read"] == ["a", "b"] and direct.ledger["updates"] == 4, "the evaluation does not count"
    assert direct.stages[1]["curves"] == {"score": {"": {"steps": [1, 2], "values": [0.1, 0.2]}}}
    assert (direct.stages[1]["began"], direct.stages[1]["ended"]) == (30.0, 60.0)
    assert [row.name for row in found_rows(run_dir, names=["direct-grpo"])] == ["direct-grpo"]
    assert found_rows(run_dir, seeds=[1]) == []


def test_a_stage_that_was_deleted_does_not_stop_the_report(run_dir):
    shutil.rmtree(run_dir / "stages/grpo-g0")
    direct = found_rows(run_dir, names=["direct-grpo"])[0]
    assert {(s["name"], s["seconds"]) for s in direct.stages} == {
        *(("student", 30.0), ("grpo", 0.0), ("evaluate-direct-grpo", 30.0))
    }
    assert direct.ledger["updates"] == 2


def test_the_command_on_a_directory(run_dir, tmp_path_factory, capsys):
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(run_dir, moved)
    assert cli.main(["report", str(moved)]) == 0
    assert "direct-grpo" in capsys.readouterr().out
    assert "+50.0" in (moved / "report.md").read_text() and (moved / "report.html").is_file()
    assert cli.main(["report", str(moved), "--rows", "cold-student", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["cold-student"]
    assert cli.main(["report", str(moved), "--seeds", "7"]) == 1


def test_the_report_is_drawn_again_only_when_something_changed(run_dir, capsys):
    page = run_dir / "report.html"
    assert cli.main(["report", str(run_dir)]) == 0
    first = page.stat().st_mtime_ns
    assert cli.main(["report", str(run_dir)]) == 0 and page.stat().st_mtime_ns == first
    page.unlink()
    assert cli.main(["report", str(run_dir)]) == 0 and page.is_file()


def test_bad_directories(run_dir, tmp_path, capsys):
    with pytest.raises(UserError, match="holds no run"):
        found_rows(tmp_path / "stages")
    assert cli.main(["report", str(run_dir), "--run-dir", str(tmp_path)]) == 2
    assert "--run-dir" in capsys.readouterr().err
    (run_dir / "stages/evaluate-e2/result.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluate-direct-grpo is damaged: result\.json"):
        found_rows(run_dir)
    (run_dir / "stages/evaluate-e3/manifest.json").write_text("{")
    with pytest.raises(UserError, match="evaluate-e3 is damaged"):
        found_rows(run_dir, names=["cold-student"])


def test_facts_are_those_the_last_run_noted(run_dir):
    assert recorded_facts(run_dir).recipe == run_dir.name
    facts = {"about": {"student": "a/b"}, "command": "verl-s2d run x.yaml", "published": {"full-bridge": {"eval": 1.0}}}
    (run_dir / "run.json").write_text(json.dumps({"recipe": "mine", "id": "0", "facts": facts}))
    found = recorded_facts(run_dir)
    assert (found.recipe, found.command, found.published) == ("mine", "verl-s2d run x.yaml", facts["published"])
