"""A probe is made of ordinary nodes: what they are, what rebuilds them, and what is refused before it starts."""

from __future__ import annotations

import json

import pytest

from tests.support.workflow.project import write_chat_model, write_model, write_problems, write_project
from verl_s2d.checks import check_plan
from verl_s2d.checks.inputs.compared_models import check_compared
from verl_s2d.errors import UserError
from verl_s2d.planner.probe import require_success
from verl_s2d.planner.probe_plan import check_probe, plan_probe
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan

PLANNER = {"problems": 8, "samples": 4}


def planned(tmp_path, seeds=None, **changes):
    recipe = load_recipe(write_project(tmp_path, **{"planner": PLANNER} | changes))
    return plan_probe(recipe, run_dir=tmp_path / "run", seeds=seeds)


def test_every_model_reads_the_same_labels_and_every_pair_the_samples_of_both(tmp_path):
    write_model(tmp_path / "small", weight=b"s")
    probe = planned(tmp_path, models={"teacher_small": "small"})
    assert list(probe.samples) == ["student", *probe.pairs] == ["student", "teacher", "teacher_small"]
    slices = {node.inputs["slices"].digest for node in (*probe.samples.values(), *probe.pairs.values())}
    assert len(slices) == 1 and {node.settings["samples"] for node in probe.samples.values()} == {4}
    pair = probe.pairs["teacher_small"]
    assert pair.inputs["student_samples"] is probe.samples["student"]
    assert pair.inputs["teacher_samples"] is probe.samples["teacher_small"]
    assert len(probe.plan.order) == 6, "one node for the slices, three for samples, two for pairs"
    assert {row.target for row in probe.plan.rows} == set(probe.plan.order), "gc keeps all of them"


def test_the_sample_is_a_part_of_the_labels_that_rows_read(tmp_path):
    from verl_s2d.data.slices import choose

    ids = [f"p{i}" for i in range(20)]
    assert set(choose(ids, 8, 0)["all"]) < set(choose(ids, 16, 0)["all"])
    (slices,) = {node.inputs["slices"] for node in planned(tmp_path).pairs.values()}
    assert slices.settings["labels"] == 8


def test_thresholds_and_engines_rebuild_nothing_and_samples_do(tmp_path):
    def digests(**planner):
        return [node.digest for node in planned(tmp_path, planner=PLANNER | planner).plan.order]

    plain = digests()
    assert digests(thresholds={"travel": 0.9}, engine={"max_num_seqs": 4}, tensor_parallel_size=2) == plain
    assert digests(samples=5)[0] == plain[0] and not set(digests(samples=5)[1:]) & set(plain)


def test_a_probe_without_a_section_has_the_defaults(tmp_path):
    with pytest.raises(UserError, match="fewer labelled problems: 16") as caught:
        planned(tmp_path, planner=None)
    assert caught.value.key == "planner.problems" and caught.value.value == 200
    assert "At most 16" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"planner": None, "teacher": None, "rows": ["direct-grpo"], "data__labels": None}, "planner.teachers"),
        ({"planner": PLANNER, "student": None, "rows": ["sft-teacher"]}, "models.student"),
        ({"seeds": [0, 1]}, "--seeds"),
    ],
)
def test_what_a_probe_cannot_do_without(tmp_path, changes, key):
    with pytest.raises(UserError) as caught:
        planned(tmp_path, **changes)
    assert caught.value.key == key and caught.value.remedy


def test_fewer_problems_than_the_sample_in_a_file(tmp_path):
    recipe = write_project(tmp_path, planner={"problems": 16}, data__labels=None)
    write_problems(tmp_path / "train.parquet", range(10))
    for plan in (
        plan_probe(load_recipe(recipe), run_dir=tmp_path / "run").plan,
        make_plan(load_recipe(recipe), run_dir=tmp_path / "run"),
    ):
        with pytest.raises(UserError, match="10") as caught:
            check_plan(plan)
        assert caught.value.key == "planner.problems" and "At most 10" in caught.value.remedy


def test_a_candidate_with_another_tokenizer_is_refused_by_check(tmp_path):
    """No row reads it, so only the probe's own check can find it."""
    for role in ("student", "teacher", "sft"):
        write_chat_model(tmp_path / role, "{{ messages[0].content }}")
    recipe = write_project(tmp_path, planner=PLANNER, models={"teacher_odd": "odd"})
    write_model(tmp_path / "odd", words=["<pad>", "<eos>", "b", "a", "c"])
    found = check_probe(load_recipe(recipe), run_dir=tmp_path / "run")
    assert not found.ok and found.bad_input
    assert "tokenizers differ" in found.detail and "teacher_odd" in found.detail


def test_a_pair_that_does_not_fit_one_gpu(tmp_path, monkeypatch):
    config = {"model_type": "qwen3", "vocab_size": 1000, "hidden_size": 4096, "intermediate_size": 12288}
    config |= {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    recipe = write_project(tmp_path, planner=PLANNER, cluster={"device": "cuda", "gpu_memory_gb": 16.0})
    for role in ("student", "teacher"):
        (tmp_path / role / "config.json").write_text(json.dumps(config))
    plan = plan_probe(load_recipe(recipe), run_dir=tmp_path / "run").plan
    for here, key in ((False, "cluster.device"), (True, "planner.teachers")):
        monkeypatch.setattr("verl_s2d.checks.inputs.compared_models.accelerator_here", lambda here=here: here)
        with pytest.raises(UserError) as caught:
            check_compared(plan, plan.order)
        assert caught.value.key == key
    assert "GiB of weights on 16" in str(caught.value)


def test_models_of_which_none_ever_succeeds_and_a_verifier_without_verdicts(tmp_path):
    probe = planned(tmp_path)
    wrong = [{"id": str(i), "correct": 0, "samples": 4} for i in range(8)]
    right = [wrong[0] | {"correct": 1}, *wrong[1:]]
    require_success(probe, {"student": wrong, "teacher": right})
    with pytest.raises(UserError, match="none of 4 samples of 8 problems is right, by student, teacher") as caught:
        require_success(probe, {"student": wrong, "teacher": wrong})
    assert "generations.parquet" in caught.value.remedy
    with pytest.raises(UserError, match="teacher a verdict") as caught:
        require_success(probe, {"student": right, "teacher": [row | {"unsettled": 4} for row in wrong]})
    assert caught.value.key == "verifier"
