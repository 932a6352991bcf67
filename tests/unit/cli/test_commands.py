"""The command line: exit codes, clean JSON, no heavy imports, status and plan."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT
from tests.support.workflow.project import FakeStages, settings, write_project
from verl_s2d import cli
from verl_s2d.checks.registration import judge

GOOD = {"error": None, "missing": [], "done": ["trainer s2d_opd"], "shims": {}}
ROOT = str(ROOT)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("verl_s2d.workflow.lane.choose_launcher", lambda plan, environment, log: FakeStages())
    monkeypatch.delenv("FAKE", raising=False)
    # Importing verl takes ten seconds; what the answer means is tested below.
    for module in ("sized_plan", "run_checks"):
        monkeypatch.setattr(f"verl_s2d.checks.{module}.VerlProbe", NoSettings)


class NoSettings:
    """Stands for the process that asks verl about every stage."""

    def __init__(self, *_: object):
        pass

    def registration(self) -> tuple[bool, str]:
        return True, "trainer s2d_opd"

    def stages(self, models: object = None) -> dict:
        return {}

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_plan_json_says_what_would_be_done(tmp_path, capsys):
    recipe = write_project(tmp_path)
    code, out, _ = call(capsys, "plan", recipe, "--run-dir", tmp_path / "run", "--json")
    view = json.loads(out)
    assert code == 0 and {s["state"] for s in view["stages"]} == {"missing"}
    opd = next(s for s in view["stages"] if s["kind"] == "opd")
    assert opd["steps"] == 4 and opd["rows"] == ["half-split"] and "trainer.v1.trainer_mode=s2d_opd" in opd["argv"]
    assert not (tmp_path / "run").exists(), "planning writes nothing"
    code, out, _ = call(capsys, "plan", recipe, "--run-dir", tmp_path / "run", "--overrides")
    assert code == 0 and "+s2d.signal.beta=1.0" in out and "8 to build (16 training steps)" in out


def test_run_status_report(tmp_path, capsys, monkeypatch):
    recipe = write_project(tmp_path)
    where = ("--run-dir", tmp_path / "run")
    assert call(capsys, "report", recipe, *where)[0] == 1
    monkeypatch.setenv("FAKE", json.dumps({"opd": "crash@3"}))
    code, _, err = call(capsys, "run", recipe, *where)
    assert code == 1 and "opd-1h failed" in err and "run the same command again" in err
    _, out, _ = call(capsys, "status", recipe, *where)
    assert re.search(r"^opd-1h +stopped .* 2/4 ", out, re.M) and re.search(r"^warmup-1h +done ", out, re.M)
    code, out, err = call(capsys, "status", recipe, *where, "--json")
    states = {s["name"]: s["state"] for s in json.loads(out)["stages"]}
    assert states["opd-1h"] == "stopped" and states["student-rl-2h"] == "missing"
    monkeypatch.delenv("FAKE")
    code, out, err = call(capsys, "run", recipe, *where, "--json")
    assert code == 0, err
    assert [r["name"] for r in json.loads(out)["rows"]] == ["cold-student", "half-split"]
    written = (tmp_path / "run" / "report.json").stat().st_mtime_ns
    code, out, _ = call(capsys, "run", recipe, *where)
    assert code == 0 and "half-split" in out and "report.md" in out
    assert (tmp_path / "run" / "report.json").stat().st_mtime_ns == written
    _, out, _ = call(capsys, "report", recipe, *where, "--json")
    assert call(capsys, "report", tmp_path / "run", "--json")[1] == out, "the run directory says the same"
    assert json.loads(out)["run"]["command"] == f"verl-s2d run {recipe} --run-dir {tmp_path / 'run'}"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "half-split" in page and page.count("<img") >= 3


def test_bad_input_is_exit_code_2_with_nothing_on_standard_output(tmp_path, capsys):
    recipe = write_project(tmp_path, data__label=3)
    code, out, err = call(capsys, "run", recipe, "--json")
    assert code == 2 and out == "" and "data.label" in err and "Did you mean labels?" in err
    assert call(capsys, "plan", tmp_path / "none.yaml")[0] == 2
    recipe = write_project(tmp_path)
    assert call(capsys, "plan", recipe, "--rows", "half-splt")[0] == 2
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", str(recipe), "--seeds", "one"])
    assert caught.value.code == 2


INTERRUPTED = """
import sys
sys.path.insert(0, {root!r})
from tests.support.workflow.project import FakeStages
from verl_s2d import cli
from verl_s2d.workflow import lane
lane.choose_launcher = lambda plan, environment, log: FakeStages()
sys.exit(cli.main(["run", {recipe!r}, "--run-dir", {run!r}, "--rows", "direct-grpo"]))
"""


def test_interrupt_says_how_to_go_on(tmp_path):
    recipe = write_project(tmp_path)
    code = INTERRUPTED.format(root=ROOT, recipe=str(recipe), run=str(tmp_path / "run"))
    environment = {**os.environ, "FAKE": json.dumps({"grpo": "slow"})}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "student-rl-all" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "run the same command again" in err and "--rows direct-grpo" in err
    assert "student-rl-all interrupted after" in err and "FAILED" not in err


def test_planning_imports_nothing_heavy(tmp_path):
    recipe = write_project(tmp_path)
    code = (
        "import sys; from verl_s2d import cli; "
        f"cli.main(['status', {str(recipe)!r}]); import verl_s2d.sizing.estimate; "
        "heavy = {'torch', 'verl', 'ray', 'transformers', 'pyarrow', 'matplotlib', 'hydra'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()


def test_preflight_imports_no_torch(tmp_path):
    recipe = write_project(tmp_path)
    code = (
        "import sys; from pathlib import Path; from verl_s2d.stages.planning import make_plan; "
        "from verl_s2d.recipe.load import load_recipe; from verl_s2d.checks import check_plan; "
        "import verl_s2d.workflow.runner, verl_s2d.report.inputs, verl_s2d.checks.installation; "
        f"check_plan(make_plan(load_recipe({str(recipe)!r}))); "
        "heavy = {'torch', 'verl', 'ray', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_check_reports_every_finding(tmp_path, capsys, monkeypatch):
    recipe, asked = write_project(tmp_path), []
    monkeypatch.setattr("verl_s2d.checks.installation.ask_for_check", lambda demand, _: asked.append(demand) or "fits")
    code, out, _ = call(capsys, "check", recipe)
    assert code == 0, out
    assert "ok   Ray cluster: fits" in out, "RAY_ADDRESS is set"
    assert (asked[0].cpus_per_worker, asked[0].storage_units) == (3, 1), "the overlay of the CPU has one unit"
    monkeypatch.delenv("RAY_ADDRESS")
    assert "tokenizers agree id by id" in out and "5 tokens, vocabulary 5" in out
    recipe = write_project(tmp_path, data__response_tokens=100)
    code, out, _ = call(capsys, "check", recipe, "--json")
    findings = {f["what"]: f for f in json.loads(out)}
    assert code == 2 and not findings["teacher and student"]["ok"] and findings["data"]["ok"]


def test_check_tells_cheap_faults_first_and_does_not_ask_verl_about_them(tmp_path, capsys, monkeypatch):
    changes = {"data.train_batch_sizes": 4, "actor_rollout_ref.rollout.nn": 2}
    recipe = write_project(tmp_path, stages__opd__verl=settings()["stages"]["opd"]["verl"] | changes)
    monkeypatch.setattr("verl_s2d.checks.installation.VerlProbe", None)
    code, out, _ = call(capsys, "check", recipe)
    assert code == 2
    assert out.index("FAIL verl keys") < out.index("skip batch sizes: not looked at: verl keys first")
    assert out.index("ok   data") < out.index("skip verl: not asked: verl keys")
    assert all(f"verl.{key}" in out for key in changes), "both keys are told"
    code, out, _ = call(capsys, "check", recipe, "--json")
    assert code == 2 and {f["ok"] for f in json.loads(out)} == {True, False, None}


def test_all_faults_of_a_recipe_are_told_at_once(tmp_path, capsys):
    recipe = write_project(
        tmp_path, data__label=3, data__prompt_tokens=-1, stages__opd__stepz=3, evaluation__top_p=1.5, student=3
    )
    code, _, err = call(capsys, "run", recipe)
    keys = ("data.label", "data.prompt_tokens", "stages.opd.stepz", "evaluation.top_p", "student")
    assert code == 2 and err.count("error: ") == len(keys)
    for key in keys:
        assert f"key:    {key}\n" in err


def test_a_plugin_that_fails_is_shown_with_its_exception():
    assert judge(GOOD) == (True, "trainer s2d_opd")
    ok, detail = judge({**GOOD, "error": "Traceback\nImportError: gone"})
    assert not ok and "ImportError: gone" in detail
    ok, detail = judge({**GOOD, "missing": ["trainer s2d_opd"]})
    assert not ok and "trainer s2d_opd" in detail


def test_run_trains_nothing_when_the_plugin_is_not_registered(tmp_path, capsys, monkeypatch):
    missing = judge({**GOOD, "missing": ["trainer s2d_opd"]})
    monkeypatch.setattr(NoSettings, "registration", lambda _: missing)
    recipe = write_project(tmp_path)
    code, _, err = call(capsys, "run", recipe, "--run-dir", tmp_path / "run")
    assert code == 2 and "trainer s2d_opd" in err and "teacher-rl" not in err
    code, _, err = call(capsys, "run", recipe, "--run-dir", tmp_path / "run", "--rows", "cold-student")
    assert code == 0, "rows without training need no trainer of ours"
