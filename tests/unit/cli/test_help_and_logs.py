"""Help, completion, the module's own entry, and `verl-s2d logs`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from tests.support.paths import ROOT
from tests.support.workflow.project import write_project
from verl_s2d import cli
from verl_s2d.command_line import command_parser
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.command_text import run_text
from verl_s2d.report.views import plan_view
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.store.run_directory import opened


def called(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_alone_it_prints_help_with_examples_exit_codes_and_variables(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    said = capsys.readouterr().out
    assert not end.value.code and all(f" {name} " in said for name in ("run", "logs", "schema"))
    assert "exit codes:" in said and "RAY_ADDRESS" in said and "verl-s2d init quickstart" in said


@pytest.mark.parametrize("words", [[], ["run", "--help"], ["init", "--help"], ["logs", "--help"]])
def test_help_fits_80_columns(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(words)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_python_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "verl_s2d", "--version"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("verl-s2d ")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["verl-s2d", "re"], "report"),
        (["verl-s2d", "run", "--sh"], "--shrink"),
        (["verl-s2d", "logs", "--f"], "--follow"),
    ],
)
def test_bash_completes_commands_and_options(words, wanted, capsys, tmp_path):
    script = called(capsys, "completion", "bash")[1]
    quoted = " ".join(f"'{word}'" for word in words)
    asked = f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _verl_s2d; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asked}"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [wanted], done.stderr
    assert "bashcompinit" in called(capsys, "completion", "zsh")[1]


def test_every_command_has_a_function_and_help():
    (commands,) = (a for a in command_parser()._actions if hasattr(a, "choices") and isinstance(a.choices, dict))
    assert commands.choices.keys() == cli._COMMANDS.keys()


@pytest.fixture
def run(tmp_path):
    """Recipe, run directory, and a function that writes the log of a stage."""
    recipe, where = write_project(tmp_path), tmp_path / "run"
    plan = make_plan(load_recipe(recipe), run_dir=where)
    nodes = {node.name: node for node in plan.order}

    def write(stage: str, text: str, *, seconds: int = 0) -> None:
        log = plan.context.directory(nodes[stage]) / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            stream.write(text)
        os.utime(log, (seconds, seconds))

    return recipe, where, write


def test_logs_shows_the_end_of_the_newest_or_of_a_named_stage(run, capsys):
    recipe, where, write = run
    assert "There is no log yet" in called(capsys, "logs", recipe, "--run-dir", where)[2]
    write("opd-1h", "".join(f"line {i}\n" for i in range(100)), seconds=2_000)
    write("warmup-1h", "warm\n", seconds=1_000)
    code, said, _ = called(capsys, "logs", recipe, "--run-dir", where, "-n", 2)
    assert code == 0 and said.startswith("==> opd-1h:") and said.endswith("line 98\nline 99\n")
    assert "line 97" not in said
    assert called(capsys, "logs", recipe, "warmup-1h", "--run-dir", where)[1].endswith("warm\n")
    assert len(called(capsys, "logs", recipe, "--run-dir", where, "-n", 0)[1].splitlines()) == 101
    code, _, error = called(capsys, "logs", recipe, "opd-1", "--run-dir", where)
    assert code == 2 and "Did you mean opd-1h?" in error
    assert "no log yet" in called(capsys, "logs", recipe, "student-rl-2h", "--run-dir", where)[2]
    assert called(capsys, "logs", recipe, "stages.opd.steps=9", "--run-dir", where)[0] in (0, 2), "no stage's name"


def test_logs_follows_a_run_from_stage_to_stage_until_it_ends(run, monkeypatch):
    recipe, where, write = run
    write("warmup-1h", "old\n", seconds=1_000)
    said: list[str] = []
    more, ended = threading.Event(), threading.Event()
    monkeypatch.setattr("verl_s2d.report.stage_logs._PAUSE", 0.01)
    monkeypatch.setattr("builtins.print", lambda text="", **_: (said.append(text), more.set()))

    def wait_for(text: str) -> None:
        while text not in "".join(said):
            assert more.wait(60)
            more.clear()

    def follow() -> None:
        cli.main(["logs", "-f", str(recipe), "--run-dir", str(where)])
        ended.set()

    thread = threading.Thread(target=follow, daemon=True)
    with opened(where, load_recipe(recipe).name):
        thread.start()
        wait_for("old\n")
        write("warmup-1h", "new\n", seconds=2_000)
        wait_for("new\n")
        write("opd-1h", "next stage\n", seconds=3_000)
        wait_for("next stage\n")
        assert not ended.is_set()
    assert ended.wait(60)
    assert "".join(said).count("==> ") == 2


def test_run_says_first_what_it_builds_and_what_that_took_elsewhere(tmp_path):
    quickstart = load_recipe(ROOT / "recipes" / "quickstart" / "quickstart.yaml")
    first, second = run_text(plan_view(make_plan(quickstart, run_dir=tmp_path / "a"))).splitlines()
    assert "14 stages, 14 to build (200 training steps)" in first
    assert second == f"measured: {quickstart.measured}"
    mine = make_plan(load_recipe(write_project(tmp_path)), run_dir=tmp_path / "b")
    assert "measured: not yet; `verl-s2d plan` estimates" in run_text(plan_view(mine))
