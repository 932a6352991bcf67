"""Several engines at once: the same file, nobody waits for a slow one, one that fails stops all, and none outlives its
parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import fake_engine, tiny
from tests.support.paths import ROOT
from tests.support.sampling_jobs import job, result
from verl_s2d.errors import UserError
from verl_s2d.sampling import PARTS, complete, replicas, shards
from verl_s2d.workflow.hosts.process import MARKER, kill_marked, marked_processes

PROBLEMS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """As far as it is read before an engine loads it."""
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_problems(tmp_path_factory.mktemp("data") / "problems.parquet", PROBLEMS)


@pytest.fixture(autouse=True)
def engines(monkeypatch, tmp_path):
    """Fake ones, in processes; parts of two prompts."""
    (tmp_path / "engines").mkdir()
    monkeypatch.setattr(shards, "PROMPTS_A_PART", 2)
    monkeypatch.setattr(complete, "Sampler", fake_engine.FakeSampler)
    monkeypatch.setattr(replicas, "COMMAND", [sys.executable, fake_engine.__file__])
    monkeypatch.setenv("FAKE_DIRECTORY", str(tmp_path / "engines"))
    return lambda **told: monkeypatch.setenv("FAKE_ENGINE", json.dumps(told))


def run(what, model, data, out, count):
    main, options = job(what, model, data, out, replicas=count)
    main(options)
    return result(what, out)


@pytest.mark.parametrize("what", ["rollouts", "evaluation"])
def test_the_result_is_the_same_for_any_number_of_engines(what, model, data, tmp_path, capsys):
    alone = run(what, model, data, tmp_path / "1", 1)
    for count in (2, 3):
        assert run(what, model, data, tmp_path / str(count), count) == alone
        said = capsys.readouterr().out
        assert all(f"engine {number} ready" in said for number in range(count))
        assert f"{PROBLEMS}/{PROBLEMS} prompts" in said
        assert not (tmp_path / str(count) / PARTS).exists()


def test_a_slow_engine_holds_nobody_up(model, data, tmp_path, engines):
    """Parts have no engine of their own: what it does not come to others do."""
    engines(first={"seconds": 3.5})
    began = time.monotonic()
    run("rollouts", model, data, tmp_path / "out", 2)
    # Half of the prompts would take the slow one 42 s, and a part of them 14 s.
    assert time.monotonic() - began < 38


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("raise", "ended with exit code 1"),
        ("exit", "ended with exit code 0"),
        ("hang", "has said nothing for"),
    ],
)
def test_a_failing_engine_stops_all(end, words, model, data, tmp_path, engines, monkeypatch):
    # Time enough for the others to say why they ended, on a machine that is busy.
    monkeypatch.setattr(replicas, "_SILENT_SECONDS", 3.0 if end == "hang" else 120.0)
    monkeypatch.setenv(MARKER, f"test-{tmp_path.name}-{os.getpid()}")
    engines(seconds=0.3, first={"seconds": 0, "end": end})
    began = time.monotonic()
    with pytest.raises(replicas.ReplicaFailed, match=words) as failed:
        run("rollouts", model, data, tmp_path / "out", 2)
    assert time.monotonic() - began < 60
    if end == "raise":
        assert "RuntimeError: the engine is out of memory" in str(failed.value)
    log = tmp_path / "out" / "worker-logs"
    assert str(log) in str(failed.value) and "all engines were stopped" in str(failed.value)
    assert marked_processes(os.environ[MARKER]) == []
    assert len(list((tmp_path / "out" / PARTS).glob("part-*"))) >= 1

    engines()
    monkeypatch.delenv(MARKER)
    assert run("rollouts", model, data, tmp_path / "out", 2) == run("rollouts", model, data, tmp_path / "alone", 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_engines_die_with_their_parent(number, model, data, tmp_path, engines):
    engines(seconds=0.1, first={"end": "hang"})
    marker = f"test-{tmp_path.name}-{os.getpid()}"
    where = [str(path) for path in (model, data, tmp_path / "out")]
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
from tests.support import fake_engine
from tests.support import sampling_jobs
from verl_s2d.sampling import shards, replicas
shards.PROMPTS_A_PART = 2
replicas.COMMAND = [{sys.executable!r}, fake_engine.__file__]
main, options = sampling_jobs.job("rollouts", *{where!r}, replicas=2)
main(options)
"""
    root = ROOT
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARKER: marker, "PYTHONPATH": str(root)}, cwd=tmp_path
    )
    try:
        deadline = time.monotonic() + 60
        while len(marked_processes(marker)) < 3 or not list((tmp_path / "out").glob(f"{PARTS}/part-*")):
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(number)
        parent.wait(20)
        deadline = time.monotonic() + 10
        while marked_processes(marker):
            assert time.monotonic() < deadline, "engines live on"
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait(10)
        kill_marked(marker)


def test_gpus_are_divided(monkeypatch):
    monkeypatch.setattr(replicas, "on_cpu", lambda device: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-1234,7,0")
    chosen = [environment["CUDA_VISIBLE_DEVICES"] for environment in replicas._environments(2, 2)]
    assert chosen == ["4,5", "GPU-1234,7"]
    assert len(replicas._environments(5, 1)) == 5
    with pytest.raises(UserError, match="than the 5 that this machine shows") as caught:
        replicas._environments(3, 2)
    assert caught.value.value == 3 and "At most 2" in caught.value.remedy


def test_cores_are_divided(monkeypatch):
    monkeypatch.setattr(replicas, "on_cpu", lambda device: True)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert replicas._environments(3, 1) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert replicas._environments(9, 1)[0] == {"OMP_NUM_THREADS": "1"}
