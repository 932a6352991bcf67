"""Frozen models on servers: their keys reach the command, their GPUs leave the student's, nothing rebuilds."""

from __future__ import annotations

import pytest

from tests.support.workflow.project import settings, write_project
from tests.support.workflow.refusal import refuse
from verl_s2d.errors import UserError
from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.servers import Servers, gpus_left
from verl_s2d.stages.planning import make_plan


def node_of(directory, **changes):
    plan = make_plan(load_recipe(write_project(directory, **changes)), run_dir=directory / "run", rows=["half-split"])
    node = next(node for node in plan.order if node.kind == "opd")
    return node, node.stage.command(node, plan.context, 1).argv, plan


def test_a_served_teacher_has_gpus_of_its_own_and_rebuilds_nothing(tmp_path):
    plain, argv, _ = node_of(tmp_path, cluster__gpus_per_node=4)
    assert not any("placement" in argument for argument in argv) and "trainer.n_gpus_per_node=4" in argv
    servers = {"teacher": {"num_replicas": 1, "tensor_model_parallel_size": 2, "gpu_memory_utilization": 0.6}}
    node, argv, plan = node_of(tmp_path, cluster__gpus_per_node=4, stages__opd__servers=servers)
    assert node.digest == plain.digest
    assert {
        "+s2d.teacher.placement=server",
        "+s2d.teacher.server.tensor_model_parallel_size=2",
        "+s2d.teacher.server.gpu_memory_utilization=0.6",
        "trainer.n_gpus_per_node=2",
        "trainer.nnodes=1",
    } <= set(argv)
    # The cluster has to hold both.
    assert node.stage.ray_demand(node, plan.recipe.cluster).per_node == 4
    others = [n for n in plan.order if n.kind in ("grpo", "warmup")]
    assert all("trainer.n_gpus_per_node=4" in n.stage.command(n, plan.context, 1).argv for n in others)


@pytest.mark.parametrize(
    ("nodes", "each", "servers", "left"),
    [
        (1, 8, [(1, 2)], (1, 6)),
        (1, 8, [(1, 2), (2, 1)], (1, 4)),
        (4, 8, [(1, 8)], (3, 8)),
        (4, 8, [(2, 8)], (2, 8)),
        (2, 8, [(2, 4)], (1, 8)),
        (2, 8, [(2, 2)], (2, 6)),
        (2, 8, [], (2, 8)),
    ],
)
def test_servers_take_whole_nodes_or_the_same_share_of_each(nodes, each, servers, left):
    chosen = [Servers(num_replicas=replicas, tensor_model_parallel_size=tensor) for replicas, tensor in servers]
    assert gpus_left(Cluster(nodes=nodes, gpus_per_node=each), chosen, "servers") == left
    assert nodes * each == left[0] * left[1] + sum(model.gpus for model in chosen)


@pytest.mark.parametrize(
    ("nodes", "each", "replicas", "tensor"), [(1, 1, 1, 1), (1, 4, 1, 4), (2, 8, 1, 3), (2, 4, 1, 8), (2, 8, 2, 8)]
)
def test_servers_that_leave_no_equal_share_are_refused(nodes, each, replicas, tensor):
    servers = [Servers(num_replicas=replicas, tensor_model_parallel_size=tensor)]
    with pytest.raises(UserError) as caught:
        gpus_left(Cluster(nodes=nodes, gpus_per_node=each), servers, "stages.opd.servers")
    assert (caught.value.key, caught.value.value) == ("stages.opd.servers", replicas * tensor) and caught.value.remedy


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("stages.opd.servers.teacher", {"stages__opd__signal": "reverse_kl"}),
        ("stages.opd.servers.base", {"stages__opd__servers": {"base": {}}}),
        ("stages.opd.servers.teacher.num_replicas", {"stages__opd__servers": {"teacher": {"num_replicas": 0}}}),
        ("stages.opd.servers.teacher.replicas", {"stages__opd__servers": {"teacher": {"replicas": 2}}}),
        ("stages.opd.servers", {"cluster__gpus_per_node": 1}),
        ("stages.opd.verl.s2d.teacher.placement", {"stages__opd__verl__s2d.teacher.placement": "server"}),
    ],
)
def test_what_cannot_work_is_refused_before_any_stage(tmp_path, key, changes):
    chosen = {"stages__opd__servers": {"teacher": {}}, "cluster__gpus_per_node": 2} | changes
    assert refuse(tmp_path, key, **chosen).key == key


def test_a_second_model_of_a_signal_may_be_the_served_one(tmp_path):
    _, argv, _ = node_of(
        tmp_path,
        cluster__gpus_per_node=2,
        models={"base": settings()["student"]},
        stages__opd__signal="exopd",
        stages__opd__servers={"base": {}},
    )
    assert "+s2d.models.base.placement=server" in argv
    assert not any(argument.startswith("+s2d.teacher.placement") for argument in argv)


def test_a_top_k_of_the_warmup_is_stored_by_the_rollouts_and_needs_no_teacher(tmp_path):
    def nodes(**changes):
        *_, plan = node_of(tmp_path, **changes)
        return {node.kind: node for node in plan.order}, plan

    (plain, _), (stored, plan) = nodes(), nodes(stages__warmup__signal={"type": "top_k", "k": 8})
    assert stored["rollouts"].settings == plain["rollouts"].settings | {"log_probs": 8}
    assert "log_probs=8" in stored["rollouts"].stage.command(stored["rollouts"], plan.context, 1).argv
    warmup = stored["warmup"]
    assert "teacher" in plain["warmup"].sources and "teacher" not in warmup.sources
    argv = warmup.stage.command(warmup, plan.context, 1).argv
    assert "+s2d.signal.k=8" in argv and not any(argument.startswith("s2d.teacher.path") for argument in argv)
    assert plain["opd"].stage.frozen_roles(stored["opd"]) == ("teacher",)


def test_a_top_k_of_2b_is_asked_of_servers_only(tmp_path):
    chosen = {"stages__opd__signal": {"type": "top_k", "k": 8, "objective": "reverse_kl"}, "cluster__gpus_per_node": 2}
    _, argv, _ = node_of(tmp_path, stages__opd__servers={"teacher": {}}, **chosen)
    assert {"+s2d.signal.type=top_k", "+s2d.teacher.placement=server"} <= set(argv)
    error = refuse(tmp_path, "stages.opd.signal", **chosen)
    assert error.key == "stages.opd.signal.type" and "stages.opd.servers" in error.remedy
