"""The environment in which torch is first asked for a device and vLLM is first imported, by every door to the sampler.

A process whose driver was asked cannot fork one that uses CUDA, and vLLM forks its engine unless it is told not to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support import tiny
from tests.support.paths import ROOT
from verl_s2d.platforms.environment import CUDA_ENVIRONMENT, stage_environment

# What torch and vLLM see is written down; the fake engine then ends the process.
WATCH = """
import json, os, sys

NAMES = ("VLLM_WORKER_MULTIPROC_METHOD", "PYTORCH_NVML_BASED_CUDA_CHECK")

def see(who):
    with open(os.environ["SEEN"], "a") as log:
        log.write(json.dumps([who, os.getpid(), {name: os.environ.get(name) for name in NAMES}]) + "\\n")
"""
FAKE_VLLM = WATCH + "\nsee('vllm')\nos._exit(7)\n"
DRIVER = (
    WATCH
    + """
import runpy
import torch

def watched(module, name):
    original = getattr(module, name)
    def asked(*args, **kwargs):
        see("torch")
        return original(*args, **kwargs)
    setattr(module, name, asked)

def watch():
    for name in ("is_available", "device_count", "current_accelerator"):
        watched(torch.accelerator, name)
    for name in ("is_available", "device_count", "init"):
        watched(torch.cuda, name)

watch()
module = sys.argv.pop(1)
if module == "Sampler":
    from verl_s2d.sampling.engine import Sampler
    Sampler(sys.argv[1], context=16)
if module == "actor":
    from verl_s2d.sampling import engine_pool, shards
    from verl_s2d.stages.rollouts import rollout_cache
    from verl_s2d import arguments

    class Watched(engine_pool.EngineActor):
        def __init__(self, *given):
            watch()
            super().__init__(*given)

    shards.PROMPTS_A_PART, engine_pool.EngineActor = 1, Watched
    see("driver")
    try:
        arguments.run(rollout_cache.main, rollout_cache.Options)
    except engine_pool.EngineFailed:
        sys.exit(7)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model that an engine could load, problems, and a package that is found before vLLM."""
    directory = tmp_path_factory.mktemp("inputs")
    tiny.write_model(directory / "model")
    tiny.write_problems(directory / "problems.parquet", 2)
    (directory / "fakes" / "vllm").mkdir(parents=True)
    (directory / "fakes" / "vllm" / "__init__.py").write_text(FAKE_VLLM)
    (directory / "driver.py").write_text(DRIVER)
    return directory


def seen(inputs, tmp_path, *arguments, **environment):
    """[who, process, what it saw of CUDA_ENVIRONMENT] of torch's and vLLM's first questions in each process."""
    clean = {name: value for name, value in os.environ.items() if name not in CUDA_ENVIRONMENT}
    log = tmp_path / "seen.jsonl"
    path = os.pathsep.join(map(str, (inputs / "fakes", ROOT)))
    with subprocess.Popen(
        [sys.executable, str(inputs / "driver.py"), *arguments],
        env={**clean, "PYTHONPATH": path, "SEEN": str(log), **environment},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        code = process.wait(120)
        assert code == 7, process.stderr.read()[-2000:]
    return [json.loads(line) for line in log.read_text().splitlines()]


def doors(inputs, tmp_path):
    model, data, out = inputs / "model", inputs / "problems.parquet", tmp_path / "out"
    sums = f"verifier={tiny.__file__}:score_sum"
    common = [f"model={model}", f"out={out}", "max_tokens=4"]
    return {
        "Sampler": ["Sampler", str(model)],
        "rollouts": ["verl_s2d.stages.rollouts.rollout_cache", *common, f"data={data}", "n=1"],
        "evaluate": ["verl_s2d.stages.evaluate.sample_and_score", *common, f"set.sums={data}", sums, "samples=1"],
        "actor": ["actor", *common, f"data={data}", "n=1", "replicas=2"],
    }


@pytest.mark.parametrize("door", ["Sampler", "rollouts", "evaluate"])
def test_torch_and_vllm_find_the_environment_at_their_first_question(door, inputs, tmp_path):
    found = seen(inputs, tmp_path, *doors(inputs, tmp_path)[door])
    assert {who for who, *_ in found} == {"torch", "vllm"}, "neither may be left out, or this test sees nothing"
    assert all(environment == CUDA_ENVIRONMENT for *_, environment in found)


def test_an_actor_has_the_environment_and_its_driver_no_vllm(inputs, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (_, driver, _), *found = seen(inputs, tmp_path, *doors(inputs, tmp_path)["actor"])
    in_actors = [(who, environment) for who, process, environment in found if process != driver]
    assert {who for who, _ in in_actors} == {"torch", "vllm"}
    assert "vllm" not in {who for who, process, _ in found if process == driver}
    assert all(environment == CUDA_ENVIRONMENT for *_, environment in found)


def test_what_a_user_has_set_stays(inputs, tmp_path):
    found = seen(inputs, tmp_path, *doors(inputs, tmp_path)["Sampler"], VLLM_WORKER_MULTIPROC_METHOD="fork")
    assert {environment["VLLM_WORKER_MULTIPROC_METHOD"] for *_, environment in found} == {"fork"}


def test_every_stage_on_cuda_has_it(monkeypatch):
    for name in CUDA_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert stage_environment("cuda").items() >= CUDA_ENVIRONMENT.items()
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    assert stage_environment("cuda")["VLLM_WORKER_MULTIPROC_METHOD"] == "fork"
