"""Several engines as Ray actors: the same file on any number of nodes, nobody waits for a slow one, what a dead one had
goes to others, and none outlives its driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.support import tiny
from tests.support.fake_engine import FakeSampler, hold_until_ready, wilful_actor
from tests.support.paths import ROOT
from tests.support.sampling_jobs import job, result
from verl_s2d.errors import UserError
from verl_s2d.sampling import PARTS, complete, engine, engine_pool, shard_worker, shards
from verl_s2d.workflow.hosts.process import MARKER, kill_marked, marked_processes

PROBLEMS = 24
NODE = {"num_cpus": 4, "num_gpus": 2}
OWN_MARKER = f"test-sampling-engines-{os.getpid()}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """As far as it is read before an engine loads it."""
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_problems(tmp_path_factory.mktemp("data") / "problems.parquet", PROBLEMS)


@pytest.fixture(scope="module")
def cluster():
    """A head without GPUs and two nodes with two logical ones each; all processes carry OWN_MARKER."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARKER, OWN_MARKER)
        head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
        started = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            started.add_node(**NODE)
        started.wait_for_nodes()
    yield started
    started.shutdown()
    kill_marked(OWN_MARKER)


@pytest.fixture(autouse=True)
def engines(monkeypatch, tmp_path):
    """Fake ones, in actors that leave a file each with the node's id; shards of two prompts."""
    (tmp_path / "engines").mkdir()
    monkeypatch.setattr(shards, "PROMPTS_A_PART", 2)
    monkeypatch.setattr(shard_worker, "Sampler", FakeSampler)

    def told(**how):
        monkeypatch.setattr(engine_pool, "EngineActor", wilful_actor(tmp_path / "engines", **how))

    told()
    return told


@pytest.fixture
def on_gpus(cluster, monkeypatch):
    """Joins the cluster; the driver itself has no GPU."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return {"device": "cuda"}


def run(what, model, data, out, **changes):
    main, options = job(what, model, data, out, **changes)
    main(options)
    return result(what, out)


def until(condition, seconds, problem):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.05)


def started(tmp_path):
    """Process -> node of every actor that was started."""
    return {int(file.name): file.read_text() for file in (tmp_path / "engines").glob("[0-9]*")}


def nobody_left(tmp_path):
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started(tmp_path)), 20, "actors live on")


@pytest.mark.parametrize("what", ["rollouts", "evaluation"])
def test_the_result_is_the_same_for_any_number_of_engines_and_all_nodes_work(
    what, model, data, tmp_path, on_gpus, capsys
):
    alone = run(what, model, data, tmp_path / "alone")
    for count in (1, 4):
        with pytest.MonkeyPatch.context() as patch:
            worked = hold_until_ready(patch, count)
            assert run(what, model, data, tmp_path / str(count), replicas=count, **on_gpus) == alone
        assert worked == set(range(count))
        said = capsys.readouterr().out
        assert all(f"engine {number} ready" in said for number in range(count))
        assert f"{PROBLEMS}/{PROBLEMS} prompts" in said
        assert not (tmp_path / str(count) / PARTS).exists()
    assert len(set(started(tmp_path).values())) == 2 and len(started(tmp_path)) == 5
    nobody_left(tmp_path)


def test_an_engine_of_two_gpus_has_them_on_one_node(model, data, tmp_path, on_gpus, capsys):
    run("rollouts", model, data, tmp_path / "out", replicas=2, tensor_parallel_size=2, **on_gpus)
    assert len(set(started(tmp_path).values())) == len(started(tmp_path)) == 2
    assert capsys.readouterr().out.count("GPU 0,1") == 2


def test_engines_on_cpus_need_no_gpu(model, data, tmp_path, on_gpus, monkeypatch):
    alone = run("rollouts", model, data, tmp_path / "alone")
    hold_until_ready(monkeypatch, 3)
    assert run("rollouts", model, data, tmp_path / "out", replicas=3, device="cpu") == alone
    assert len(started(tmp_path)) == 3


def test_a_slow_engine_holds_nobody_up(model, data, tmp_path, engines, on_gpus, monkeypatch):
    """Shards have no engine of their own: what it does not come to others do."""
    engines(first={"seconds": 1.5})
    hold_until_ready(monkeypatch, 2)
    run("rollouts", model, data, tmp_path / "out", replicas=2, **on_gpus)
    slow = (tmp_path / "engines" / "first").read_text()
    steps = {file.name: int(file.read_text()) for file in (tmp_path / "engines").glob("steps-*")}
    assert len(steps) == 2 and sum(steps.values()) == PROBLEMS
    assert 0 < steps[f"steps-{slow}"] < PROBLEMS / 2, "less than its half"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("raise", "RuntimeError: the engine is out of memory"),
        ("exit", "The actor died"),
        ("kill", "its worker process has died"),
        ("hang", "has not answered within"),
    ],
)
def test_what_a_dead_engine_had_goes_to_others(
    end, words, model, data, tmp_path, engines, on_gpus, monkeypatch, capsys
):
    if end == "hang":
        monkeypatch.setattr(engine_pool, "_SILENT_SECONDS", 8.0)
    engines(seconds=0.6, first={"seconds": 0, "end": end, "child": True})
    alone = run("rollouts", model, data, tmp_path / "alone")
    before = set(marked_processes(OWN_MARKER))
    assert run("rollouts", model, data, tmp_path / "out", replicas=2, **on_gpus) == alone
    said = capsys.readouterr().out
    assert words in said and ") failed: " in said and "Its log: /" in said
    assert len(started(tmp_path)) == 3, "two, and one in the place of the dead one"
    nobody_left(tmp_path)
    # Workers that Ray keeps for the next driver are no engines, and hold no children.
    left = {pid for pid in marked_processes(OWN_MARKER) if pid not in before and b"sleep" in command(pid)}
    assert not left, "children of a dead engine live on"


def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_shard_that_ends_every_engine_stops_all(model, data, tmp_path, engines, on_gpus, capsys):
    engines(seconds=0.1, end="raise", after=2)
    with pytest.raises(engine_pool.EngineFailed, match="lost 3 times") as failed:
        run("rollouts", model, data, tmp_path / "out", replicas=2, **on_gpus)
    assert "RuntimeError: the engine is out of memory" in str(failed.value)
    log = str(failed.value).partition("Its log: ")[2].splitlines()[0]
    assert "the engine is out of memory" in Path(log).read_text() or Path(log).is_file()
    assert 3 <= len(started(tmp_path)) <= 8
    nobody_left(tmp_path)

    engines()
    kept = len(list((tmp_path / "out" / PARTS).glob("part-*")))
    capsys.readouterr()
    assert run("rollouts", model, data, tmp_path / "out", replicas=2, **on_gpus) == run(
        "rollouts", model, data, tmp_path / "alone"
    )
    assert not kept or f"{kept} of 12 parts are there" in capsys.readouterr().out


def test_an_engine_that_cannot_be_loaded_is_done_without(model, data, tmp_path, engines, on_gpus, capsys):
    engines(seconds=0.3, first={"end": "load"})
    run("rollouts", model, data, tmp_path / "out", replicas=2, **on_gpus)
    assert "(loading) failed" in capsys.readouterr().out and len(started(tmp_path)) == 2


def test_if_none_can_be_loaded_the_cause_is_told(model, data, tmp_path, engines, on_gpus):
    engines(end="load")
    with pytest.raises(engine_pool.EngineFailed, match="No engine is left") as failed:
        run("rollouts", model, data, tmp_path / "out", replicas=2, **on_gpus)
    assert "RuntimeError: the engine is out of memory" in str(failed.value)
    assert len(started(tmp_path)) == 2


def test_an_engine_that_is_not_placed_in_time_is_told(model, data, tmp_path, on_gpus, monkeypatch):
    monkeypatch.setattr(engine_pool, "_LOAD_SECONDS", 0.0)
    with pytest.raises(engine_pool.EngineFailed, match="was not placed and loaded within 0 minutes"):
        run("rollouts", model, data, tmp_path / "out", replicas=2, **on_gpus)


def test_a_lost_node_is_done_without(cluster, model, data, tmp_path, engines, on_gpus, monkeypatch, capsys):
    """A third node with a fifth GPU goes away when the first shard is there: its engine finds no other place."""
    third = cluster.add_node(num_cpus=4, num_gpus=1)
    cluster.wait_for_nodes()
    engines(seconds=0.2)
    # Removing the node takes seconds on a busy machine: its engine has answered by then, and is asked once more.
    monkeypatch.setattr(shards, "PROMPTS_A_PART", 1)

    def write_part(part, samples):
        nonlocal third
        if third is not None:
            lost = third.node_id
            cluster.remove_node(third, allow_graceful=False)
            # On a busy machine its engine outlives the node's raylet, and could answer all that is left.
            (mine,) = (pid for pid, node in started(tmp_path).items() if node == lost)
            until(lambda: not Path(f"/proc/{mine}").exists(), 60, "the engine outlives its node")
            third = None
        shards.write_part(part, samples)

    monkeypatch.setattr(complete, "write_part", write_part)
    hold_until_ready(monkeypatch, 5)
    found = run("rollouts", model, data, tmp_path / "out", replicas=5, **on_gpus)
    assert third is None and capsys.readouterr().out.count(") failed: ") == 1
    monkeypatch.setattr(complete, "write_part", shards.write_part)
    assert found == run("rollouts", model, data, tmp_path / "alone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("joined", [False, True], ids=["own Ray", "a cluster"])
def test_engines_die_with_their_driver(number, joined, model, data, tmp_path, cluster):
    marker = f"test-{tmp_path.name}-{os.getpid()}"
    where = [str(path) for path in (model, data, tmp_path / "out")]
    told = {"seconds": 0.1, "child": True, "first": {"end": "hang"}}
    options = {"replicas": 2, "device": "cuda" if joined else "cpu"}
    code = f"""
import signal
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
from tests.support import fake_engine, sampling_jobs
from verl_s2d.sampling import engine_pool, shards
shards.PROMPTS_A_PART = 2
engine_pool.EngineActor = fake_engine.wilful_actor(Path({str(tmp_path / "engines")!r}), **{told!r})
main, options = sampling_jobs.job("rollouts", *{where!r}, **{options!r})
main(options)
"""
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment = {**clean, MARKER: marker, "PYTHONPATH": str(ROOT)}
    environment |= {"RAY_ADDRESS": cluster.address} if joined else {}
    before = set(marked_processes(OWN_MARKER))
    driver = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while len(started(tmp_path)) < 2 or not list((tmp_path / "out").glob(f"{PARTS}/part-*")):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        driver.send_signal(number)
        driver.wait(30)
        nobody_left(tmp_path)
        # Ray's own helpers notice the end of a killed driver by polling.
        until(lambda: not marked_processes(marker), 60, "processes of the driver live on")
        children = lambda: [p for p in set(marked_processes(OWN_MARKER)) - before if b"sleep" in command(p)]  # noqa: E731
        until(lambda: not children(), 10, "children of the engines live on")
    finally:
        driver.kill()
        driver.wait(10)
        kill_marked(marker)


def test_more_engines_than_gpus_are_refused(model, data, tmp_path, on_gpus):
    with pytest.raises(UserError, match="than the 4 on 3 node") as refused:
        run("rollouts", model, data, tmp_path / "out", replicas=3, tensor_parallel_size=2, **on_gpus)
    assert refused.value.value == 3 and "At most 2" in refused.value.remedy
    assert started(tmp_path) == {} and not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["rollouts", "evaluation"])
def test_on_cuda_without_a_gpu_nothing_is_sampled(what, model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_pool.ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(engine_pool.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    with pytest.raises(UserError, match="than the 0 on 1 node") as refused:
        run(what, model, data, tmp_path / "out", device="cuda")
    assert "RAY_ADDRESS" in refused.value.remedy and not (tmp_path / "out").exists()


def test_an_engine_refuses_cuda_where_torch_sees_none(model, monkeypatch):
    """Its CPU would give another result."""
    monkeypatch.setattr(engine, "_accelerator", lambda: False)
    with pytest.raises(UserError, match="sees no accelerator") as refused:
        engine.Sampler(str(model), context=16, device="cuda")
    assert (refused.value.key, refused.value.value) == ("device", "cuda") and "nvidia-smi" in refused.value.remedy


def test_cores_are_divided_and_vllms_variables_handed_on(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    found = engine_pool._environment(3, cpu=True)
    chosen = (found["VLLM_WORKER_MULTIPROC_METHOD"], found["PYTORCH_NVML_BASED_CUDA_CHECK"])
    assert chosen == ("fork", "1"), "what vLLM needs, and a user's own word on it"
    assert (found["OMP_NUM_THREADS"], found["VLLM_BATCH_INVARIANT"]) == ("2", "1") and "VLLM_API_KEY" not in found
    assert engine_pool._environment(9, cpu=True)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in engine_pool._environment(2, cpu=False)
