"""`verl-s2d plan` on the recipes: verl's checks, layouts, memory and cost, without a network, weights or a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.workflow.project import write_project

QWEN = ROOT / "recipes" / "qwen3" / "qwen3-1.7b-from-8b.yaml"

# As a sitecustomize of every process of the command: whoever opens a connection fails the test.
NO_NETWORK = """
import os, socket
def refuse(self, address, *_):
    if not isinstance(address, (str, bytes)) and not str(address[0]).startswith("127."):
        open(os.environ["OPENED"], "a").write(f"{address}\\n")
        raise OSError(f"network: {address}")
socket.socket.connect = socket.socket.connect_ex = refuse
def lookup(host, *_, **__):
    open(os.environ["OPENED"], "a").write(f"{host}\\n")
    raise socket.gaierror(f"network: {host}")
socket.getaddrinfo = lookup
"""


def plan(tmp_path: Path, recipe: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command, with no network and an empty cache of the hub; `opened` has what it tried to reach."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RAY_"))}
    environment |= {
        "PYTHONPATH": f"{site}:{ROOT}",
        "HF_HOME": str(tmp_path / "hub"),
        "OPENED": str(tmp_path / "opened"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "verl_s2d.cli", "plan", str(recipe), "--run-dir", str(tmp_path / "run")]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path)


def changed(tmp_path: Path, change) -> Path:
    """The recipe beside its script, changed."""
    recipe = yaml.safe_load(QWEN.read_text())
    change(recipe)
    (tmp_path / "data.py").write_text((QWEN.parent / "data.py").read_text())
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> dict:
    directory = tmp_path_factory.mktemp("plan")
    done = plan(directory, QWEN, "--rows", "full-bridge", "--json")
    assert done.returncode == 0, done.stderr
    assert not (directory / "opened").exists(), (directory / "opened").read_text()
    assert not (directory / "run").exists(), "planning writes nothing"
    return json.loads(done.stdout)


def stage(view: dict, name: str) -> dict:
    return next(s for s in view["stages"] if s["name"] == name)


def test_every_stage_has_its_memory_and_cost(view):
    assert view["sizes"]["fits"] and view["sizes"]["unknown"] == []
    sized = {s["name"] for s in view["stages"] if s.get("memory") and s.get("cost")}
    assert sized == {"teacher-rl-all", "rollouts-all", "warmup-all", "opd-all", "evaluate-full-bridge"}
    phases = stage(view, "teacher-rl-all")["memory"]["phases"]
    assert list(phases) == ["loading", "rollout", "log-probs", "reference", "update", "weight sync"]
    # 16 bytes for each of 8.19 G parameters on 8 GPUs, less what has no gradient yet at the peak.
    update = phases["update"]
    assert update["parameters"] + update["optimizer"] == pytest.approx(12 * 8_190_735_360 / 8 / 2**30, abs=0.02)
    assert list(stage(view, "warmup-all")["memory"]["phases"]) == ["loading", "update"]
    assert stage(view, "opd-all")["memory"]["sampling"]["replicas"] == 8


def test_costs_are_at_most_those_of_full_length(view):
    teacher = stage(view, "teacher-rl-all")["cost"]
    assert teacher["sampled_tokens"] == 630 * 128 * 8 * 16_384 and teacher["verifier_calls"] == 630 * 128 * 8
    assert teacher["updates"] == 630 * 16 and teacher["teacher_scored_tokens"] == 0
    assert stage(view, "opd-all")["cost"]["teacher_scored_tokens"] == 126 * 64 * 8 * 8192
    # As many rollouts as the warmup reads.
    rollouts = stage(view, "rollouts-all")
    assert rollouts["cost"]["sampled_tokens"] == rollouts["cache"]["tokens_read"] == 250 * 64 * 16_384
    assert stage(view, "evaluate-full-bridge")["cost"]["verifier_calls"] == 560 * 16
    total = view["sizes"]["total"]
    assert total["updates"] == 630 * 16 + 250 + 126 and total["gpu_hours"] > teacher["gpu_hours"]


def test_engines_and_sequences_in_flight(view):
    sampling = {name: stage(view, name)["memory"]["sampling"] for name in ("teacher-rl-all", "opd-all")}
    assert [(s["replicas"], s["sequences_in_flight"]) for s in sampling.values()] == [(4, 1024), (8, 512)]


def test_a_response_of_stage_2b_is_as_long_as_the_recipe_lets_it_be(view):
    assert stage(view, "opd-all")["cost"]["sampled_tokens"] == 126 * 64 * 8 * 8192


def test_disk_of_every_stage_and_of_the_run(view):
    # GB: fp32 weights, two moments and an export, 16 bytes a parameter; the export stays.
    disk = {name: stage(view, name)["disk"] for name in ("teacher-rl-all", "warmup-all", "opd-all")}
    assert disk["teacher-rl-all"]["checkpoint_gb"] == 131.1 and disk["teacher-rl-all"]["result_gb"] == 32.8
    assert disk["warmup-all"] == {"checkpoint_gb": 27.5, "kept": disk["warmup-all"]["kept"], "result_gb": 6.9}
    kept = disk["teacher-rl-all"]["kept"]
    assert view["sizes"]["disk_gb"]["most"] >= round(kept * 131.05) and view["sizes"]["disk_gb"]["complete"]


def test_text_names_what_does_not_fit_with_the_key_and_a_model_nobody_knows(tmp_path):
    def change(recipe):
        recipe["teacher"], recipe["cluster"]["gpu_memory_gb"] = "some/model", 8

    done = plan(tmp_path, changed(tmp_path, change), "--rows", "direct-grpo,opd-only")
    assert done.returncode == 1, done.stderr
    assert "Memory of a GPU of 8 GiB" in done.stdout and "assumed, not measured" in done.stdout
    assert "Disk in GB" in done.stdout and "without stages of unknown size" in done.stdout
    assert re.search(r"student-rl-all does not fit: \S+ needs .* GiB: \w+ .*actor_rollout_ref", done.stdout), (
        done.stdout
    )
    assert "unknown: teacher: some/model" in done.stdout and "teacher.config" in done.stdout
    assert "opd-all-cold does not fit" not in done.stdout and "evaluate-opd-only" in done.stdout


def test_a_wrong_parallel_size_is_refused_with_the_remedy(tmp_path):
    def change(recipe):
        recipe["stages"]["opd"]["verl"]["actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"] = 16

    done = plan(tmp_path, changed(tmp_path, change), "--rows", "opd-only")
    assert done.returncode == 2
    words = r"opd-all-cold: .*fsdp_config\.ulysses_sequence_parallel_size.*16.*product divides 8"
    assert re.search(words, " ".join(done.stderr.split())), done.stderr


def test_on_a_cpu_the_graph_and_the_costs(tmp_path):
    done = plan(tmp_path, write_project(tmp_path), "--rows", "half-split", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rl = stage(found, "student-rl-2h")
    assert rl["memory"] is None and rl["cost"]["sampled_tokens"] == 4 * 4 * 2 * 4
    assert stage(found, "evaluate-half-split")["cost"]["verifier_calls"] == 5 * 2
