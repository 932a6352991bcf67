"""Each patch applies to the installed source, does what its runtime shim did, and makes that shim stand down."""

from __future__ import annotations

import shutil

import pytest

from tests.support.overlay import PATCHES, facts, make_overlay

NAMES = sorted(path.name for path in PATCHES.glob("*.patch"))

_VERL = """
import importlib.metadata, os, socket
import torch, verl
from verl_s2d.plugin import STATUS
facts["error"], facts["shims"] = STATUS.error, STATUS.shims
try:
    facts["distribution"] = importlib.metadata.version("vllm")
except importlib.metadata.PackageNotFoundError:
    facts["distribution"] = None

import verl.utils.distributed as distributed
facts["default_backend"] = getattr(distributed, "default_process_group_backend", lambda: None)()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
distributed.initialize_global_process_group_ray()
total = torch.ones(1)
torch.distributed.all_reduce(total)
facts["sum_over_ranks"] = total.item()
distributed.destroy_global_process_group()

def outcome(act):
    try:
        act()
        return "ok"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

import verl.utils.config as verl_config
from verl_s2d.platforms.config_hook import add_check
facts["check_ran"], facts["exported"] = [], verl_config.__all__
facts["validate_config_is_stock"] = not hasattr(verl_config.validate_config, "__wrapped__")
add_check(lambda config: facts["check_ran"].append("checked"))
try:
    verl_config.validate_config(None, False, False)
except AttributeError:
    facts["check_ran"].append("verl's own")

facts["other_initialiser"] = outcome(distributed.initialize_global_process_group)
if torch.distributed.is_initialized():
    distributed.destroy_global_process_group()
unshimmed = getattr(distributed.initialize_global_process_group_ray, "__wrapped__", None)
facts["without_shim"] = unshimmed and outcome(unshimmed)
"""

_VLLM = """
from vllm.platforms import current_platform
import vllm.model_executor.layers.utils as layer_utils

facts["platform_is_cpu"] = current_platform.is_cpu()

def follows_an_update():
    layer = torch.nn.Linear(64, 64, bias=False).requires_grad_(False)
    layer_utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    if layer.weight.numel() == 0:
        return "the weight is gone"
    layer.weight.copy_(torch.eye(64))
    x = torch.randn(3, 64)
    return bool(torch.equal(layer.cpu_linear(x, layer.weight, None), x))

facts["before_plugin"] = follows_an_update()
installed = layer_utils.dispatch_cpu_unquantized_gemm
from vllm.v1.sample.ops.logprobs import batched_count_greater_than
facts["count_was_compiled"] = hasattr(batched_count_greater_than, "_torchdynamo_orig_callable")
from verl_s2d.platforms.cpu import vllm_plugin
vllm_plugin.register()
facts["vllm_shim"] = layer_utils.dispatch_cpu_unquantized_gemm is not installed
facts["after_plugin"] = follows_an_update()
from vllm.v1.sample import sampler
from vllm.v1.sample.ops import logprobs
facts["count_is_compiled"] = hasattr(logprobs.batched_count_greater_than, "_torchdynamo_orig_callable")
facts["count_is_the_samplers"] = sampler.batched_count_greater_than is logprobs.batched_count_greater_than
facts["ranks"] = logprobs.batched_count_greater_than(torch.tensor([[3.0, 1, 2]]), torch.tensor([[2.0]])).tolist()

import verl.third_party.vllm, verl.workers.rollout.vllm_rollout
from verl.utils.vllm.utils import is_version_ge
from verl.utils.vllm.vllm_quant_utils import _get_vllm_version
facts["verl_sees"] = [verl.third_party.vllm.vllm_version, str(_get_vllm_version())]
facts["new_enough"] = is_version_ge(minver="0.18.0")
"""


@pytest.fixture(scope="module")
def unpatched() -> dict:
    return facts(_VERL + _VLLM)


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return facts(_VERL + _VLLM, make_overlay(tmp_path_factory.mktemp("patched"), [PATCHES / name for name in NAMES]))


@pytest.mark.parametrize("name", NAMES)
def test_applies_to_the_installed_source(name, tmp_path):
    make_overlay(tmp_path, [PATCHES / name])


@pytest.mark.parametrize("name", NAMES)
def test_has_a_line_in_the_readme(name):
    assert f"| `{name}` |" in (PATCHES / "README.md").read_text()


def test_process_group_backend_shim_is_active_without_the_patch(unpatched):
    assert unpatched["shims"]["process_group_backend"] == "shim"
    assert unpatched["sum_over_ranks"] == 1
    assert "Duplicate device type cpu" in unpatched["without_shim"]


def test_process_group_backend_patch_replaces_the_shim(patched):
    assert patched["shims"]["process_group_backend"] == "upstream"
    assert patched["default_backend"] == "cpu:gloo"
    assert patched["sum_over_ranks"] == 1 and patched["without_shim"] is None
    assert patched["other_initialiser"] == "ok"


def test_vllm_distribution_shim_is_active_without_the_patch(unpatched):
    assert unpatched["shims"]["vllm_distribution_name"] == "shim"
    assert unpatched["distribution"].endswith("+cpu")
    assert unpatched["verl_sees"] == [unpatched["distribution"]] * 2 and unpatched["new_enough"]


def test_vllm_distribution_patch_replaces_the_shim(patched, unpatched):
    assert patched["shims"]["vllm_distribution_name"] == "upstream"
    assert patched["distribution"] is None
    assert patched["verl_sees"] == [unpatched["distribution"].removesuffix("+cpu")] * 2 and patched["new_enough"]
    assert patched["platform_is_cpu"]


def test_updatable_weights_shim_is_active_without_the_patch(unpatched):
    assert unpatched["before_plugin"] == "the weight is gone"
    assert unpatched["vllm_shim"] and unpatched["after_plugin"] is True


def test_updatable_weights_patch_replaces_the_shim(patched):
    assert patched["before_plugin"] == "the weight is gone"
    assert not patched["vllm_shim"] and patched["after_plugin"] is True


def test_ranks_are_counted_uncompiled_without_the_patch_and_with_it(unpatched, patched):
    assert unpatched["count_was_compiled"] and not patched["count_was_compiled"]
    for seen in (unpatched, patched):
        assert not seen["count_is_compiled"] and seen["count_is_the_samplers"] and seen["ranks"] == [2]


def test_config_check_hook_runs_a_check_before_verls_own(unpatched):
    assert unpatched["shims"]["config_checks"] == "shim" and unpatched["check_ran"] == ["checked", "verl's own"]


def test_config_check_patch_replaces_the_hook(patched):
    assert patched["shims"]["config_checks"] == "upstream" and patched["check_ran"] == ["checked", "verl's own"]
    assert patched["validate_config_is_stock"] and "register_config_check" in patched["exported"]


def test_no_failure_was_swallowed(patched, unpatched):
    assert patched["error"] is None and unpatched["error"] is None


_TRUST = """
import json, pathlib, types
import verl
import verl.experimental.reward_loop as package
from verl.experimental.reward_loop import reward_loop
from verl_s2d.plugin import STATUS
from tests.support.tiny import write_model
from omegaconf import OmegaConf

facts["error"], facts["shim"] = STATUS.error, STATUS.shims.get("reward_loop_trust")
model = write_model(pathlib.Path(DIRECTORY))
ran = pathlib.Path(DIRECTORY) / "ran"
(model / "tokenization_evil.py").write_text(
    "import pathlib\\n"
    f"pathlib.Path({str(ran)!r}).touch()\\n"
    "from transformers import PreTrainedTokenizerFast\\n"
    "class EvilTokenizer(PreTrainedTokenizerFast):\\n"
    "    pass\\n"
)
config = json.loads((model / "tokenizer_config.json").read_text())
config |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "tokenization_evil.EvilTokenizer"]}}
(model / "tokenizer_config.json").write_text(json.dumps(config))
reward_loop.load_reward_manager = lambda *args, **kwargs: None

def runs_code(trust, init):
    ran.unlink(missing_ok=True)
    section = {"path": str(model), "tokenizer_path": None, "trust_remote_code": trust}
    settings = {"actor_rollout_ref": {"model": section}, "reward": {"reward_model": {"enable": False}}}
    worker = types.SimpleNamespace(config=OmegaConf.create(settings), reward_router_address=None)
    try:
        init(worker)
    except ValueError:
        pass
    # Python runs a module once, so that later only the class tells.
    return ran.exists() or type(getattr(worker, "input_tokenizer", None)).__name__ == "EvilTokenizer"

init = reward_loop.RewardLoopWorker._init_reward_fn
facts["untrusted"], facts["trusted"] = runs_code(False, init), runs_code(True, init)
stock = getattr(init, "__wrapped__", None)
if stock is not None:
    from verl.utils import hf_tokenizer
    reward_loop.hf_tokenizer = hf_tokenizer
    facts["stock"] = runs_code(False, stock)
"""


def test_reward_workers_run_no_code_of_a_checkpoint(tmp_path):
    code, home = _TRUST.replace("DIRECTORY", repr(str(tmp_path / "model"))), {"HF_HOME": str(tmp_path / "home")}
    seen = facts(code, **home)
    assert seen == {"error": None, "shim": "shim", "untrusted": False, "trusted": True, "stock": True}
    overlay = make_overlay(tmp_path / "overlay", [PATCHES / "verl-reward-loop-trust.patch"])
    shutil.rmtree(tmp_path / "model")
    seen = facts(code, overlay, **home)
    assert seen == {"error": None, "shim": "upstream", "untrusted": False, "trusted": True}


_ACCELERATOR = """
import sys
from wrapt import when_imported

@when_imported("verl.plugin.platform.platform_cuda")
def pretend(module):
    module.PlatformCUDA.is_platform_available = lambda self, use_smi_check=False: True

finders = list(sys.meta_path)
import verl
from verl.plugin.platform import get_platform
from verl_s2d.plugin import STATUS
import verl.utils.distributed as distributed
import verl.workers.engine.fsdp.transformer_impl

facts["platform"] = get_platform().device_name
facts["error"], facts["shims"] = STATUS.error, STATUS.shims
facts["process_group_shim"] = hasattr(distributed.initialize_global_process_group_ray, "_s2d_shim")
ours = ("shims", "fsdp_engines", "vllm_plugin")
facts["loaded"] = [name for name in ours if f"verl_s2d.platforms.cpu.{name}" in sys.modules]
facts["finders"] = [str(finder) for finder in sys.meta_path if "s2d" in str(finder) and "editable" not in str(finder)]

import types
vllm_platforms = types.ModuleType("vllm.platforms")
vllm_platforms.current_platform = types.SimpleNamespace(is_cpu=lambda: False)
sys.modules.update({"vllm": types.ModuleType("vllm"), "vllm.platforms": vllm_platforms})
from verl_s2d.platforms.cpu.vllm_plugin import register
register()
facts["vllm_modules"] = [name for name in sys.modules if name.startswith("vllm.model_executor")]
"""


def test_nothing_is_active_beside_an_accelerator():
    seen = facts(_ACCELERATOR, VERL_PLATFORM="")
    assert seen["platform"] == "cuda"
    assert seen["error"] is None and seen["shims"] == {"config_checks": "shim"}
    assert not seen["process_group_shim"]
    assert seen["loaded"] == [] and seen["finders"] == [] and seen["vllm_modules"] == []
