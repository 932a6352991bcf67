"""`import verl` alone registers everything, in whatever order a process first imports verl's modules."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.overlay import facts

FIRST_IMPORTS = [
    "import verl",
    "import verl.trainer.ppo.core_algos",
    "from verl.trainer.ppo.v1 import get_trainer_cls",
    "import verl.workers.engine.fsdp.transformer_impl",
    "import verl.trainer.main_ppo",
    "import verl_s2d.plugin",
    "import verl_s2d.stages.opd.trainer",
    "import verl_s2d.platforms.cpu.fsdp_engines",
]

_FIRST_IMPORTS = f"""
import os, subprocess, sys, traceback
import ray, torch, transformers, tensordict, vllm  # what takes long, once for all orders

LOOK = '''
from verl.plugin.platform import get_platform
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.workers.engine.base import EngineRegistry
import verl.workers.engine.fsdp.transformer_impl
from verl_s2d.plugin import STATUS
assert STATUS.error is None, STATUS.error
assert get_trainer_cls("s2d_opd").__name__ == "OpdTrainer"
assert get_trainer_cls("s2d_grpo").__name__ == "GrpoTrainer"
assert get_adv_estimator_fn("s2d_opd").__module__ == "verl_s2d.signals.in_verl.advantage_estimator"
assert get_platform().device_name == "cpu"
assert EngineRegistry._engines["language_model"]["fsdp2"]["cpu"] is not None
assert sorted(STATUS.done) == sorted(set(STATUS.done)), STATUS.done
'''

for order in {FIRST_IMPORTS!r}:
    reader, writer = os.pipe()
    if os.fork() == 0:
        answer = "ok"
        try:
            exec(order, {{}})
            exec(LOOK, {{}})
        except BaseException:
            answer = traceback.format_exc()
        os.write(writer, answer.encode()[-4000:])
        os._exit(0)
    os.close(writer)
    facts[order] = os.fdopen(reader, "rb").read().decode()
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return facts(_FIRST_IMPORTS)


@pytest.mark.parametrize("order", FIRST_IMPORTS)
def test_registered_whatever_is_imported_first(outcomes, order):
    assert outcomes[order] == "ok"


_LIGHT = """
import sys, verl
before = set(sys.modules)
import verl_s2d.plugin
new = set(sys.modules) - before
facts["packages"] = sorted({name.split(".")[0] for name in new} - set(sys.stdlib_module_names))
facts["verl"] = sorted(name for name in new if name.startswith("verl."))
"""


def test_plugin_imports_nothing_heavy():
    seen = facts(_LIGHT, VERL_USE_EXTERNAL_PLUGINS="none")
    assert set(seen["packages"]) <= {"verl", "verl_s2d", "wrapt"}
    # The shims look at these; both are small.
    assert set(seen["verl"]) <= {"verl.utils.distributed", "verl.utils.net_utils"}


@pytest.fixture
def broken(tmp_path) -> dict[str, str]:
    """An environment in which the plugin cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['verl_s2d.platforms.cpu.platform'] = None\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_broken_plugin_keeps_its_exception(broken):
    code = "import verl; from verl_s2d.plugin import STATUS; print(STATUS.error)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, **broken}, capture_output=True, text=True
    )
    assert "import of verl_s2d.platforms.cpu.platform halted" in done.stdout
    assert "verl-s2d did not load" in done.stderr


def test_check_tells_about_a_broken_plugin(broken):
    done = subprocess.run(
        [sys.executable, "-m", "verl_s2d.cli", "check"], env={**os.environ, **broken}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "FAIL registration" in done.stdout
    assert "import of verl_s2d.platforms.cpu.platform halted" in done.stdout


_PLATFORM = """
import verl
from verl.plugin.platform import get_platform
from verl.plugin.platform.platform_manager import PlatformRegistry
import verl.experimental.reward_loop.reward_loop
import verl.workers.engine.fsdp.transformer_impl
from verl.workers.engine.base import EngineRegistry
from verl_s2d.plugin import STATUS
facts["platform"] = type(get_platform()).__name__
facts["server environment"] = sorted(get_platform().rollout_env_vars())
facts["cpu is offered"] = PlatformRegistry.get("cpu")().is_platform_available(use_smi_check=True)
facts["cpu engine"] = "cpu" in EngineRegistry._engines["language_model"]["fsdp2"]
facts["error"], facts["shims"] = STATUS.error, sorted(STATUS.shims)
"""


@pytest.mark.parametrize("platform", ["", "nvidia"])
def test_a_host_without_a_device_stays_on_verl_s_own_platform(platform):
    seen = facts(_PLATFORM, VERL_PLATFORM=platform)
    assert seen == {
        "platform": "PlatformCUDA",
        "server environment": ["NCCL_CUMEM_ENABLE"],
        "cpu is offered": False,
        "cpu engine": False,
        "error": None,
        "shims": ["config_checks", "reward_loop_trust"],
    }


def test_the_platform_cpu_is_used_where_it_is_asked_for():
    seen = facts(_PLATFORM)
    assert (seen["platform"], seen["cpu is offered"], seen["cpu engine"]) == ("PlatformCPU", True, True)
    assert seen["shims"] == ["config_checks", "process_group_backend", "reward_loop_trust", "vllm_distribution_name"]
