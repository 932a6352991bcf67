"""CPUs that verl holds on Ray, summed for one node and for several."""

from __future__ import annotations

import pytest

from verl_s2d.workflow.hosts.ray_places import Demand, fitting_groups, lacking_cpus


def nodes(*resources: tuple[float, float]) -> list[dict]:
    """(CPUs, GPUs) of each node, as Ray lists them."""
    return [
        {"NodeID": f"{i:04x}", "NodeManagerAddress": f"10.0.0.{i}", "Resources": {"CPU": cpus, "GPU": gpus}}
        for i, (cpus, gpus) in enumerate(resources)
    ]


RL = {"cpus_per_worker": 3, "storage_units": 2}
ONE, EIGHT = Demand(1, 1, **RL), Demand(1, 8, **RL)


def test_a_node_holds_three_cpus_a_worker_and_verl_s_queue():
    assert (ONE.cpus(2), EIGHT.cpus(2)) == (3 + 2 + 2, 24 + 2 + 2)
    assert Demand(1, 8).cpus(0) == 8, "the warmup has workers only"


@pytest.mark.parametrize(
    ("cpus", "gpus", "demand", "fits"), [(7, 1, ONE, 1), (6, 1, ONE, 0), (27, 8, EIGHT, 0), (28, 8, EIGHT, 1)]
)
def test_a_node_with_too_few_cpus_holds_no_group(cpus, gpus, demand, fits):
    assert fitting_groups(nodes((cpus, gpus)), "GPU", demand) == fits
    assert (lacking_cpus(nodes((cpus, gpus)), "GPU", demand) is None) == bool(fits)


def test_groups_of_several_nodes_and_several_on_one():
    two = Demand(2, 4, **RL)
    assert fitting_groups(nodes((15, 4), (15, 4)), "GPU", two) == 2
    assert fitting_groups(nodes((15, 4), (14, 4)), "GPU", two) == 1
    assert fitting_groups(nodes((16 + 12, 8)), "GPU", two) == 2
    assert "node 10.0.0.1 offers Ray 14 CPU(s), and a stage holds 15 there" in lacking_cpus(
        nodes((15, 4), (14, 4)), "GPU", two
    )


def test_a_head_without_cpus_gets_storage_units_all_the_same():
    """TransferQueue deals its units out to all nodes and insists: a head started with --num-cpus=0 would stop it."""
    found = nodes((0, 0), (64, 8))
    problem = lacking_cpus(found, "GPU", EIGHT)
    assert "node 10.0.0.0 offers Ray 0 CPU(s), and a stage holds 1 there (1 for storage units" in problem
    found[1]["Resources"]["store"] = 1.0
    assert lacking_cpus(found, "GPU", Demand(1, 8, **RL, storage_resource="store")) is None
    assert lacking_cpus(found, "GPU", Demand(1, 8)) is None, "the warmup has none"


def test_a_node_that_is_missing_is_no_matter_of_cpus():
    assert lacking_cpus(nodes((8, 0)), "GPU", ONE) is None and fitting_groups(nodes((8, 0)), "GPU", ONE) == 0
