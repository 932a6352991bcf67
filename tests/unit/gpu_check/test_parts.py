"""The cheap parts of gpu-check for real, as on a CPU: what they record. The others: tests/e2e/test_gpu_check.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verl_s2d import cli
from verl_s2d.gpu_check import stage_recipe
from verl_s2d.gpu_check.figures import Recorder, read_checks
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.gpu_check.parts import machine, summary
from verl_s2d.recipe.load import load_recipe


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """Report and exit code of `gpu-check --device cpu` on this machine."""
    out = tmp_path_factory.mktemp("gpu-check") / "report.json"
    code = cli.main(["gpu-check", "--device", "cpu", "--parts", "machine,registration,fork", "--out", str(out)])
    return json.loads(out.read_text()) | {"code": code}


def test_the_cheap_parts_pass_here(report):
    failed = [check for part in report["parts"] for check in part["checks"] if check["state"] == "failed"]
    assert (failed, report["code"], report["ok"]) == ([], 0, True)


def states(report: dict, part: str) -> dict[str, str]:
    checks = next(found["checks"] for found in report["parts"] if found["name"] == part)
    return {check["name"]: check["state"] for check in checks}


def test_what_needs_a_gpu_is_skipped_and_never_ok(report):
    found = states(report, "machine")
    assert found["GPU"] == found["flash-attn"] == "skipped"
    assert found["C compiler"] == found["Python.h"] == "ok"


def test_the_platform_is_looked_at_with_and_without_being_asked_for(report):
    found = states(report, "registration")
    assert set(found.values()) == {"ok"}
    assert "platform where no GPU is visible and none was asked for" in found and "shims" in found


def test_the_sampler_is_followed_to_the_start_of_its_engine(report):
    found = states(report, "fork")
    assert found["variables when vLLM is imported"] == found["start method"] == "ok"
    assert found["torch before the sampler"] == "ok"


@pytest.fixture
def recorded(tmp_path):
    """A recorder, and what it has recorded: name -> state."""
    path = tmp_path / "checks"
    return Recorder("part", path), lambda: {check.name: check.state for check in read_checks(path)}


def test_a_gpu_machine_with_little_shared_memory_no_smi_and_no_compiler_fails(tmp_path, recorded, monkeypatch):
    record, found = recorded
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: type("Usage", (), {"total": 2**26, "free": 2**40}))
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    machine._host(Settings("cuda", str(tmp_path)), record, 1)
    machine._nvidia_smi(record)
    machine._compiler(record)
    assert [found()[name] for name in ("/dev/shm", "nvidia-smi", "C compiler")] == ["failed"] * 3
    cpus = next(check for check in read_checks(tmp_path / "checks") if check.name == "CPUs")
    assert cpus.figure.endswith("verl holds 7 of Ray's for each stage that samples and trains")


def test_the_summary_counts_and_estimates_only_from_what_was_measured(tmp_path, recorded):
    record, found = recorded
    settings = Settings("cpu", str(tmp_path), recipe="recipes/none.yaml")
    summary.run(settings, record)
    assert found() == {"summary": "skipped"}
    checks = [{"name": "speed", "state": "information", "figure": "100 tokens/s", "value": 100.0}]
    parts = [{"name": "vllm", "checks": checks, "state": "ok", "seconds": 1.0}]
    summary._sampling_hours(settings, record, parts, 360_000)
    assert found()["GPU-hours of sampling"] == "skipped", "a random model's speed says nothing"
    summary._sampling_hours(Settings("cuda", str(tmp_path), model="/model"), record, parts, 360_000)
    name = "GPU-hours of sampling, at most, if every token came from --model"
    assert next(check.value for check in read_checks(tmp_path / "checks") if check.name == name) == 1.0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_recipe_of_the_stages_is_one_that_a_run_accepts(device, tmp_path):
    model = tmp_path / "model"
    recipe = load_recipe(stage_recipe.write_recipe(Settings(device, str(tmp_path), model=str(model))))
    assert recipe.cluster.device == device and recipe.rows == ["full-bridge"]
    assert recipe.models["student"].model == recipe.models["teacher"].model == str(model)
    assert recipe.stages.opd.signal == {"type": "reverse_kl"} and recipe.stages.opd.steps == 3
    for section in (recipe.evaluation, recipe.stages.rollouts):
        assert section.engine == ({"gpu_memory_utilization": 0.5} if device == "cuda" else {})
    assert Path(recipe.directory / "verifier.py").exists()
