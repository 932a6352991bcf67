"""`verl-s2d overrides` prints what a recipe's stages get, and a cluster of that kind has room for the command."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from tests.support.documents.commands import documented_commands
from tests.support.paths import ROOT
from verl_s2d.cli import main
from verl_s2d.errors import UserError
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.opd.metrics import EXACT_METRICS
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.shared.ray_cluster import nodes_of_command, require_rl_places
from verl_s2d.starter.verl_command import DEVICES, STAGES, verl_command
from verl_s2d.verl_settings.overrides import hydra_arguments


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("stage", STAGES)
def test_a_cpu_s_settings_are_those_of_a_recipe_s_stage(stage, tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "quickstart" / "quickstart.yaml", ["cluster.device=cpu"])
    plan = make_plan(recipe, run_dir=tmp_path, rows=["half-split"], seeds=[0])
    node = next(node for node in plan.order if node.stage.kind == stage)
    words = node.stage.command(node, plan.context, 1).argv
    printed = verl_command("cpu", stage)
    own = {"transfer_queue.backend.SimpleStorage.num_data_storage_units"}
    assert set(hydra_arguments({k: v for k, v in printed.machine.items() if k not in own})) <= set(words)
    assert printed.environment.items() <= stage_environment("cpu").items()
    given = {word.partition("=")[0] for word in words}
    assert {key for key in printed.stage if key.lstrip("+") not in {key.lstrip("+") for key in given}} == set()


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("stage", STAGES)
def test_both_forms_say_the_same_and_need_no_quotes_in_a_shell(kind, stage, capsys):
    assert main(["overrides", kind, "--stage", stage, "--gpus", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert main(["overrides", kind, "--stage", stage, "--gpus", "2", "--shell"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    words = line.split()
    assert words == shlex.split(line) and not set("*?[]$`'\"\\") & set(line)
    # A key of the stage that the machine changes stands twice in the list, and the last value holds.
    last = {text.partition("=")[0]: text for text in lines}
    assert set(words) - {"env", "python", "-m", verl_command(kind, stage).program} == set(last.values())


def composed(kind: str, *changes: str, gpus: int = 2) -> DictConfig:
    printed = verl_command(kind, "opd", gpus)
    words = printed.words().split()
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*words[words.index(printed.program) + 1 :], *changes])


@pytest.fixture
def no_other_ray(monkeypatch):
    """A directory of Ray's own, whose path is short: another head of this machine would be joined."""
    with tempfile.TemporaryDirectory(prefix="ray-") as directory:
        monkeypatch.setenv("RAY_TMPDIR", directory)
        yield


@pytest.mark.parametrize("kind", DEVICES)
def test_a_local_ray_has_room_for_the_printed_settings(kind, no_other_ray):
    config = composed(kind)
    (node,) = nodes_of_command(config) if kind == "cpu" else [cluster_node(config.ray_kwargs.ray_init.num_cpus, 2)]
    assert node["Resources"]["CPU"] == config.ray_kwargs.ray_init.num_cpus
    require_rl_places(config, [node])


def cluster_node(cpus: float, gpus: float, name: str = "a") -> dict:
    return {"NodeID": name, "NodeManagerAddress": name, "Resources": {"CPU": cpus, "GPU": gpus}}


@pytest.mark.parametrize(
    ("cpus", "gpus", "key"),
    [(100, 0, "trainer.n_gpus_per_node"), (100, 1, "trainer.n_gpus_per_node"), (9, 2, "ray_kwargs.ray_init.num_cpus")],
)
def test_what_would_be_waited_for_is_refused_with_the_remedy(cpus, gpus, key):
    with pytest.raises(UserError, match="verl-s2d overrides cpu") as refused:
        require_rl_places(composed("gpu"), [cluster_node(cpus, gpus)])
    assert refused.value.key == key


def test_the_smallest_sufficient_cluster_is_taken():
    """Two workers of three CPUs, two storage units, TransferQueue's controller and one free."""
    require_rl_places(composed("gpu"), [cluster_node(10, 2)])


def test_gpus_of_teachers_on_servers_are_counted():
    served = ["+s2d.teacher.path=t", "+s2d.teacher.placement=server", "+s2d.teacher.server.num_replicas=2"]
    with pytest.raises(UserError, match=r"4 GPU\(s\), and Ray has 3"):
        require_rl_places(composed("gpu", *served), [cluster_node(100, 3)])
    with pytest.raises(UserError, match="hold 16 of the CPUs"):
        require_rl_places(composed("gpu", *served), [cluster_node(15, 4)])
    require_rl_places(composed("gpu", *served), [cluster_node(16, 4)])


def test_two_nodes_with_the_gpus_of_one_are_refused_when_a_node_lacks_them():
    with pytest.raises(UserError, match="2 node"):
        require_rl_places(composed("gpu"), [cluster_node(50, 1), cluster_node(50, 1, "b")])


def test_a_cluster_that_runs_already_is_given_no_numbers(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    printed = verl_command("cpu").ray
    assert not {key for key in printed if "num_cpus" in key or "num_gpus" in key}
    assert printed["+ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM"] == "cpu"


def test_the_page_has_a_command_for_each_kind_of_machine_and_six_metrics_that_are_logged():
    commands = documented_commands("trainer-keys.md")
    assert all(any(f"overrides {kind}" in command for command in commands) for kind in DEVICES)
    page = (Path(ROOT) / "docs" / "trainer-keys.md").read_text().partition("## Six numbers")[2].partition("\n## ")[0]
    named = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `s2d/")]
    source = (ROOT / "verl_s2d" / "stages" / "opd" / "metrics.py").read_text()
    assert len(named) == 6
    assert all(name in source or name.removeprefix("s2d/") in EXACT_METRICS for name in named)
