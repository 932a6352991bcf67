"""The stages that only sample, as the workflow sees them: engines on the GPUs of all nodes, sizes that fit a node."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import write_project
from verl_s2d.arguments import parse
from verl_s2d.checks.inputs import samplers
from verl_s2d.checks.inputs.samplers import check_samplers
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.sizing.estimate import Estimate
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.stages.evaluate.sample_and_score import Options
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.rollouts import rollout_cache
from verl_s2d.workflow.ledger import empty_ledger
from verl_s2d.workflow.store.manifest import write_manifest

EIGHT = {"device": "cuda", "gpus_per_node": 8}


@pytest.fixture(autouse=True)
def driver(tmp_path, monkeypatch):
    """The file of a driver; without it the machine has no GPU, and no other has without a cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "nvidiactl"
    file.touch()
    monkeypatch.setattr(samplers, "accelerator_here", file.exists)
    return file


def plan_of(tmp_path, cluster, rollouts=1, evaluation=1, engine=None):
    changes = {
        "stages__rollouts": {"per_prompt": 2, "tensor_parallel_size": rollouts, "engine": engine or {}},
        "evaluation": {"samples": 2, "tensor_parallel_size": evaluation, "engine": engine or {}},
    }
    recipe = write_project(tmp_path, cluster=cluster, **changes)
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    for name in ("student", "teacher"):
        # A shape that `plan` knows.
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"vocab_size": 8, "model_type": "qwen3"}))
    return make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"])


def arguments(plan, kind):
    node = next(n for n in plan.order if n.kind == kind)
    argv = node.stage.command(node, plan.context, 1).argv
    return dict(a.split("=", 1) for a in argv[3:])


def argument(plan, kind, name):
    return arguments(plan, kind)[name]


def test_engines_use_all_gpus_of_all_nodes(tmp_path):
    plan = plan_of(tmp_path, EIGHT | {"nodes": 2}, rollouts=4)
    assert argument(plan, "rollouts", "replicas") == "4" and argument(plan, "evaluate", "replicas") == "16"
    sizes = Estimate(plan, {}, Models(plan)).view()["stages"]
    engines = {label.partition("-")[0]: size["memory"]["sampling"]["replicas"] for label, size in sizes.items()}
    assert engines == {"rollouts": 4, "evaluate": 16}


@pytest.mark.parametrize(("kind", "options"), [("rollouts", rollout_cache.Options), ("evaluate", Options)])
def test_a_module_reads_the_command_of_its_stage(kind, options, tmp_path):
    plan = plan_of(tmp_path, {"device": "cpu"})
    node = next(n for n in plan.order if n.kind == kind)
    parse(node.stage.command(node, plan.context, 1).argv[3:], options)


def test_on_a_cpu_there_is_one(tmp_path):
    plan = plan_of(tmp_path, EIGHT | {"device": "cpu"})
    assert argument(plan, "rollouts", "replicas") == argument(plan, "evaluate", "replicas") == "1"


@pytest.mark.parametrize(
    ("sizes", "key", "remedy"),
    [
        ({"rollouts": 3}, "stages.rollouts.tensor_parallel_size", "divisor of 8"),
        ({"evaluation": 16}, "evaluation.tensor_parallel_size", "divisor of 8"),
        ({"rollouts": 8}, "stages.rollouts.tensor_parallel_size", "divisor of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_run_and_by_plan(tmp_path, sizes, key, remedy):
    plan = plan_of(tmp_path, EIGHT, **sizes)
    for look in (lambda: check_samplers(plan, plan.order), lambda: Estimate(plan, {}, Models(plan)).view()):
        with pytest.raises(UserError) as refused:
            look()
        assert refused.value.key == key and remedy in refused.value.remedy


def test_without_a_gpu_nothing_is_sampled_on_cuda(tmp_path, driver, monkeypatch):
    """Without a cluster engines work on this machine, whose CPU would give another result."""
    plan = plan_of(tmp_path, EIGHT)
    check_samplers(plan, plan.order)
    driver.unlink()
    with pytest.raises(UserError, match="shows no GPU") as refused:
        check_samplers(plan, plan.order)
    assert (refused.value.key, refused.value.value) == ("cluster.device", "cuda")
    assert "has GPUs" in refused.value.remedy and "RAY_ADDRESS" in refused.value.remedy
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_samplers(plan, plan.order)
    monkeypatch.delenv("RAY_ADDRESS")
    training = [n for n in plan.order if n.kind not in ("rollouts", "evaluate")]
    check_samplers(plan, training)
    on_cpu = plan_of(tmp_path, {"device": "cpu"})
    check_samplers(on_cpu, on_cpu.order)


@pytest.mark.parametrize("kind", ["rollouts", "evaluate"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_an_engine_is_told_its_device_and_needs_ray_for_gpus_alone(kind, device, tmp_path):
    plan = plan_of(tmp_path, EIGHT | {"device": device})
    assert argument(plan, kind, "device") == device
    (stage,) = {node.stage for node in plan.order if node.kind == kind}
    assert stage.needs_ray(plan.context) == (device == "cuda") and not stage.trains


def test_what_an_engine_is_told_reaches_it_and_rebuilds_nothing(tmp_path):
    plain = plan_of(tmp_path, EIGHT)
    told = plan_of(tmp_path, EIGHT, engine={"gpu_memory_utilization": 0.5, "max_num_seqs": 64, "enforce_eager": True})
    assert [n.digest for n in told.order] == [n.digest for n in plain.order]
    for kind in ("rollouts", "evaluate"):
        given = {k: v for k, v in arguments(told, kind).items() if k.startswith("engine.")}
        assert given == {
            "engine.gpu_memory_utilization": "0.5",
            "engine.max_num_seqs": "64",
            "engine.enforce_eager": "true",
        }
    before, after = (Estimate(p, {}, Models(p)).view()["stages"] for p in (plain, told))
    shares = [
        {label.partition("-")[0]: s["memory"]["phases"]["rollout"]["rollout engine"] for label, s in view.items()}
        for view in (before, after)
    ]
    assert shares == [dict.fromkeys(("rollouts", "evaluate"), size) for size in (73.6, 40)]


@pytest.mark.parametrize("name", ["dtype", "quantization", "kv_cache_dtype", "hf_overrides"])
def test_what_makes_other_logits_is_another_result(name, tmp_path):
    plain, told = plan_of(tmp_path, EIGHT), plan_of(tmp_path, EIGHT, engine={name: "float16"})
    known = {n.digest for n in plain.order}
    assert {n.kind for n in told.order if n.digest not in known} >= {"rollouts", "evaluate"}
    assert argument(told, "evaluate", f"engine.{name}") == "float16"


@pytest.mark.parametrize(
    ("engine", "words", "remedy"),
    [
        ({"seed": 3}, "computed", "seeds:"),
        ({"max_model_len": 100}, "computed", "Leave it out"),
        ({"tensor_parallel_size": 2}, "computed", "beside `engine:`"),
        ({"worker_extension_cls": "x"}, "computed", "Leave it out"),
        ({"load_format": "dummy"}, "computed", "safetensors"),
        ({"gpu_memory_utilization": 1.5}, "share", "at most 1"),
        ({"gpu_memory_utilization": True}, "share", "at most 1"),
        ({"max_num_seqs": 0}, "small", "from 1 on"),
    ],
)
@pytest.mark.parametrize("section", ["stages.rollouts", "evaluation"])
def test_what_cannot_be_said_to_an_engine_is_refused_as_the_recipe_is_read(section, engine, words, remedy, tmp_path):
    base = {"stages.rollouts": {"per_prompt": 2}, "evaluation": {"samples": 2}}[section]
    recipe = write_project(tmp_path, **{section.replace(".", "__"): {**base, "engine": engine}})
    with pytest.raises(UserError, match=words) as refused:
        load_recipe(recipe)
    (name,) = engine
    assert refused.value.key == f"{section}.engine.{name}" and remedy in refused.value.remedy


def test_an_argument_that_vllm_does_not_have_is_refused(tmp_path):
    plan = plan_of(tmp_path, EIGHT, engine={"gpu_memory_utilisation": 0.5})
    with pytest.raises(UserError, match="no such argument") as refused:
        check_samplers(plan, plan.order)
    assert refused.value.key == "stages.rollouts.engine.gpu_memory_utilisation"
    assert "gpu_memory_utilization" in refused.value.remedy


def test_the_digest_that_the_run_has_of_a_model_is_handed_on(tmp_path):
    """So that an engine's start does not wait until the model has been read a second time."""
    plan = plan_of(tmp_path, EIGHT)
    node = next(n for n in plan.order if n.kind == "evaluate")
    assert argument(plan, "evaluate", "weights") == "null", "as long as the model is not there"
    source = node.inputs["model"]
    digests = []
    for weights in (b"a", b"b"):
        model = plan.context.directory(source) / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "model.safetensors").write_bytes(weights)
        write_manifest(source, model.parent, ledger=empty_ledger(1.0), seconds=1.0, attempts=1)
        digests.append(argument(plan, "evaluate", "weights"))
    assert digests[0] != digests[1] and all(digest.startswith("outputs:") for digest in digests)

    recipe = load_recipe(write_project(tmp_path / "cold"))
    cold = make_plan(recipe, run_dir=tmp_path / "cold" / "run", rows=["cold-student"])
    (student,) = (n.externals["model"] for n in cold.order if n.kind == "evaluate")
    assert argument(cold, "evaluate", "weights") == student.identity
