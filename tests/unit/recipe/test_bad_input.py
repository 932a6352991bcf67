"""Every kind of bad input gives one error with key, value and remedy, before any stage starts."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.support.workflow.project import (
    FIXED_MICRO_BATCHES,
    WORDS,
    FakeStages,
    settings,
    write_model,
    write_problems,
    write_project,
    write_scripts,
)
from tests.support.workflow.refusal import refuse
from verl_s2d.checks import check_plan
from verl_s2d.checks.inputs.data_slices import check_slices
from verl_s2d.checks.software import check_versions
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.verl_settings.generated import verl_keys
from verl_s2d.workflow.progress import PlainProgress
from verl_s2d.workflow.runner import run_plan

GOOD = settings()["stages"]["opd"]["verl"]
FIXED = GOOD | FIXED_MICRO_BATCHES
SEQUENCES = {"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 2}
BY_TOKENS = {"actor_rollout_ref.actor.use_dynamic_bsz": True}


def test_the_good_recipe_passes(tmp_path):
    plan = make_plan(load_recipe(write_project(tmp_path)), run_dir=tmp_path / "run", rows=["all"])
    assert all("ground truth" in warning for warning in check_plan(plan))


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"studnet": "x"}, "studnet", ["Did you mean student?"]),
        ({"stages__opd__step": 3}, "stages.opd.step", ["Did you mean steps?"]),
        ({"data__label": 3}, "data.label", ["Did you mean labels?"]),
        ({"rows": ["half-splt"]}, "rows", ["half-splt", "half-split"]),
        ({"rows": []}, "rows", []),
        ({"seeds": [1, 1]}, "seeds", []),
        ({"seeds": 3}, "seeds", ["list"]),
        ({"data__labels": "many"}, "data.labels", ["many", "int"]),
        ({"data__labels": True}, "data.labels", ["int"]),
        ({"stages__opd__steps": 0}, "stages.opd.steps", ["At least 1"]),
        ({"stages__opd__steps": 1.5}, "stages.opd.steps", ["int"]),
        ({"stages__opd__signal": "reverse"}, "stages.opd.signal.type", ["sampled", "reverse_kl"]),
        ({"stages__opd__signal": {"type": "reverse_kl", "beta": 0.3}}, "stages.opd.signal.beta", ["sampled", "jsd"]),
        ({"stages__warmup__signal": "sampled"}, "stages.warmup.signal.type", ["cached", "forward_kl"]),
        ({"stages__opd__signal": "exopd"}, "models.base", ["base"]),
        ({"cluster__device": "tpu"}, "cluster.device", ["cpu", "cuda"]),
        ({"cluster__warm_start": 1}, "cluster.warm_start", []),
        ({"student": None}, "student", ["required"]),
        ({"stages__opd__verl__data.train_files": "x"}, "stages.opd.verl.data.train_files", ["computed"]),
        ({"stages__opd__verl__+s2d.signal.beta": 2}, "stages.opd.verl.+s2d.signal.beta", ["beta"]),
        ({"student": {"args": {}}}, "student", ["script"]),
        ({"data__source": {"script": "tasks.py"}}, "data", ["exactly one"]),
        ({"data__eval": {}}, "data.eval", []),
        ({"name": "a/b"}, "name", []),
    ],
)
def test_recipe_keys_and_values(tmp_path, changes, key, words):
    refuse(tmp_path, key, *words, **changes)


def test_a_warm_start_beside_an_accelerator(tmp_path):
    refuse(
        tmp_path, "cluster.warm_start", "CUDA does not work in a fork", cluster__device="cuda", cluster__warm_start=True
    )


def test_a_device_that_only_the_ray_cluster_knows(tmp_path, monkeypatch):
    """A login node or a Ray head without GPUs says nothing about the nodes, and overlays differ by device."""
    monkeypatch.setattr("verl_s2d.platforms.device.ACCELERATORS", {})
    monkeypatch.setattr("verl_s2d.platforms.device.shutil.which", lambda name: None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    refuse(tmp_path, "cluster.device", "auto", "Set it to cuda, or to cpu", cluster__device="auto")
    monkeypatch.delenv("RAY_ADDRESS")
    assert make_plan(load_recipe(tmp_path / "recipe.yaml")).context.device == "cpu"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("verl_s2d.platforms.device.shutil.which", lambda name: f"/usr/bin/{name}")
    assert make_plan(load_recipe(tmp_path / "recipe.yaml")).context.device == "cuda"


def test_times_that_the_recipe_leaves_open_fit_the_device(tmp_path):
    def times(device, **changes):
        recipe = write_project(tmp_path, cluster__device=device, cluster__stall_minutes=None, **changes)
        cluster = make_plan(load_recipe(recipe)).context.cluster
        return cluster.stall_minutes, cluster.step_minutes, cluster.grace_seconds

    assert times("cpu") == (10, 30, 25) and times("cuda") == (60, 120, 1800)
    assert times("cuda", cluster__grace_seconds=0, cluster__step_minutes=7) == (60, 7, 0)


def test_yaml_that_does_not_parse_or_says_a_thing_twice(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: [")
    with pytest.raises(UserError, match="yaml"):
        load_recipe(recipe)
    recipe.write_text("name: a\nname: b\n")
    with pytest.raises(UserError, match="given twice"):
        load_recipe(recipe)
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_settings_of_another_stage_can_be_merged_in_and_changed(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    data = settings()
    data["stages"]["opd"]["verl"] = "HERE"
    base = "&base {a.b: 1, a.c: 2}"
    text = yaml.safe_dump(data).replace("HERE", "\n      <<: [&more {<<: *base, a.b: 3}]\n      a.c: 4")
    recipe.write_text(f"published: {{cold-student: {base}}}\n{text}")
    assert load_recipe(recipe).stages.opd.verl == {"a.b": 3, "a.c": 4}
    recipe.write_text(recipe.read_text() + "a: &a {x: 1, x: 2}\n")
    with pytest.raises(UserError, match="given twice"):
        load_recipe(recipe)


def test_numbers_are_read_as_people_write_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    data = settings()
    data["stages"]["opd"]["verl"] = {"actor_rollout_ref.actor.optim.lr": "LR"}
    recipe.write_text(yaml.safe_dump(data).replace("LR", "1e-3"))
    assert load_recipe(recipe).stages.opd.verl == {"actor_rollout_ref.actor.optim.lr": 1e-3}


def test_missing_or_unreadable_models(tmp_path):
    refuse(tmp_path, "student", "./nowhere", student="./nowhere")
    refuse(tmp_path, "student", "no config.json", student=".")

    def damage():
        (tmp_path / "teacher" / "config.json").write_text("{")

    refuse(tmp_path, "teacher", "cannot be read", prepare=damage)

    def no_tokenizer():
        (tmp_path / "teacher" / "tokenizer.json").write_text("{}")

    refuse(tmp_path, "teacher", "tokenizer", prepare=no_tokenizer)


def test_unreachable_hub_models(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")

    def download(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    refuse(tmp_path, "student", "no network", "nobody/nothing", student="nobody/nothing")


def test_a_hub_that_cannot_be_reached_is_not_a_repository_without_a_model(tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*args, **kwargs):
        raise LocalEntryNotFoundError("offline, and not in the cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    refuse(tmp_path, "student", "offline", "nobody/nothing", student="nobody/nothing")


def test_published_results_of_no_row(tmp_path):
    refuse(tmp_path, "published", "Did you mean half-split", published={"half-splits": {"held": 50.0}})


def test_verifier_options(tmp_path):
    refuse(tmp_path, "verifier.form", "oxed", verifier={"name": "math", "form": "oxed"})
    refuse(tmp_path, "verifier.name", "maths", "Did you mean math", verifier={"name": "maths"})
    refuse(tmp_path, "verifier.name", "without options", verifier={"name": "verifier.py:score", "form": "boxed"})
    refuse(tmp_path, "verifier.form", "boxed", "add `name:`", verifier={"form": "boxed"})


def test_tokenizers_that_differ(tmp_path):
    def swap():
        write_model(tmp_path / "teacher", words=[*WORDS[:3], "c", "b"])

    error = refuse(tmp_path, "teacher", "first at id 3", "'b' for the student", "'c' for the teacher", prepare=swap)
    assert "share a tokenizer" in error.remedy


def test_teacher_vocabulary_smaller_than_the_ids_in_use(tmp_path):
    def shrink():
        write_model(tmp_path / "teacher", vocabulary=4)

    refuse(tmp_path, "teacher", "4 rows", "up to 4", prepare=shrink)


def test_differences_that_are_allowed_are_told(tmp_path):
    recipe = write_project(tmp_path)
    write_model(tmp_path / "teacher", eos=0, vocabulary=8)
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run")
    warnings = check_plan(plan)
    assert any("end-of-sequence" in w for w in warnings) and any("padded" in w for w in warnings)


def test_response_longer_than_the_context(tmp_path):
    refuse(tmp_path, "data.response_tokens", 60, "64", "At most 56", data__response_tokens=60)


def test_evaluation_problems_in_training_data(tmp_path):
    def leak():
        write_problems(tmp_path / "held.parquet", [3, 90])

    refuse(tmp_path, "eval.held", "problem 3", prepare=leak)


def test_repeated_problems_would_put_a_label_in_two_slices(tmp_path):
    def repeat():
        write_problems(tmp_path / "train.parquet", [*range(20), 4])

    refuse(tmp_path, "data.train: prompt", "problem 4", "Remove duplicates", prepare=repeat)


def test_overlapping_slices_are_found(tmp_path):
    for name, ids in (("all", range(8)), ("1h", range(5)), ("2h", range(4, 8))):
        write_problems(tmp_path / f"{name}.parquet", ids)
        write_problems(tmp_path / f"{name}-prompts.parquet", ids)
    with pytest.raises(UserError, match="shares 1 problems") as caught:
        check_slices(tmp_path)
    assert caught.value.value == "problem-4"
    write_problems(tmp_path / "2h.parquet", range(5, 8))
    with pytest.raises(UserError, match="free of answers"):
        check_slices(tmp_path)


def test_empty_or_missing_data(tmp_path):
    refuse(tmp_path, "data.train", "empty", prepare=lambda: write_problems_empty(tmp_path / "train.parquet"))
    refuse(tmp_path, "data.train", "nothing.parquet", data__train="nothing.parquet")
    refuse(tmp_path, "data.labels", "only 20", data__labels=21)
    refuse(tmp_path, "data.labels", "At least 2", data__labels=1)


def broken(path, change):
    """Problems, one of which is changed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    prefix = "problem" if path.stem == "train" else "held"
    rows = pq.read_table(write_problems(path, range(20), prefix=prefix)).to_pylist()
    change(rows[3])
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("damage", ["text", "half", "garbled", "nothing", "directory"])
@pytest.mark.parametrize(("name", "key"), [("train", "data.train"), ("held", "data.eval.held")])
def test_malformed_parquet(tmp_path, damage, name, key):
    def spoil():
        path = tmp_path / f"{name}.parquet"
        whole = path.read_bytes()
        spoiled = {
            "text": b"no parquet",
            "half": whole[: len(whole) // 2],
            "garbled": whole[:40] + bytes(200) + whole[240:],
            "nothing": b"",
        }
        if damage == "directory":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(spoiled[damage])

    refuse(tmp_path, key, "cannot be read", f"{name}.parquet", prepare=spoil)


@pytest.mark.parametrize(
    ("change", "key", "word"),
    [
        (lambda row: row.pop("prompt"), "prompt", "Row 3"),
        (lambda row: row.update(prompt=[]), "prompt", "messages"),
        (lambda row: row["prompt"][0].update(content=None), "prompt", "Row 3"),
        (lambda row: row.update(data_source=None), "data_source", "Row 3"),
        (lambda row: row.update(reward_model=None), "reward_model", "Row 3"),
        (
            lambda row: row["extra_info"].update(index=row["extra_info"]["index"][:-1] + "4"),
            "extra_info.index",
            "more than once",
        ),
        (
            lambda row: row["prompt"][0].update(content=row["prompt"][0]["content"][:-1] + " 4"),
            "prompt",
            "more than once",
        ),
    ],
)
@pytest.mark.parametrize(("name", "key_of"), [("train", "data.train"), ("held", "data.eval.held")])
def test_rows_that_are_no_problems(tmp_path, change, key, word, name, key_of):
    refuse(tmp_path, f"{key_of}: {key}", word, prepare=lambda: broken(tmp_path / f"{name}.parquet", change))


@pytest.mark.parametrize(("column", "what"), [("prompt", "question"), ("reward_model", "answer")])
def test_missing_columns(tmp_path, column, what):
    import pyarrow.parquet as pq

    def drop():
        path = tmp_path / "held.parquet"
        pq.write_table(pq.read_table(path).drop_columns(column), path)

    refuse(tmp_path, "data.eval.held", f"lacks a column of the {what}", prepare=drop)


def test_an_evaluation_set_without_problems(tmp_path):
    refuse(tmp_path, "data.eval.held", "no rows", prepare=lambda: write_problems_empty(tmp_path / "held.parquet"))


def test_a_script_that_makes_an_evaluation_set_without_problems_stops_the_run_before_training(tmp_path):
    write_scripts(tmp_path)
    changes = {"data__train": None, "data__eval": {}, "data__source": {"script": "tasks.py", "args": {"held": 1}}}
    recipe = write_project(tmp_path, **changes)
    (tmp_path / "tasks.py").write_text(
        (tmp_path / "tasks.py").read_text()
        + "import pyarrow.parquet as pq\nheld = out / 'held.parquet'\n"
        + "pq.write_table(pq.read_table(held).slice(0, 0), held)\n"
    )
    plan, launcher = make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["direct-grpo"]), FakeStages()
    with pytest.raises(UserError, match="no rows"):
        run_plan(plan, PlainProgress(), launcher=launcher, check=lambda final: check_plan(plan))
    assert {node.kind for node in plan.order} - {n.kind for n in plan.missing()} == {"script", "slices"}


def test_a_half_would_be_empty(tmp_path):
    def one():
        write_problems(tmp_path / "train.parquet", [1])

    refuse(tmp_path, "data.train", "half", choose=["cold-student", "half-split"], prepare=one, data__labels=None)


def test_k_larger_than_the_samples(tmp_path):
    refuse(tmp_path, "evaluation.pass_at", "3", "at most 2", evaluation__pass_at=[1, 3])
    refuse(tmp_path, "evaluation.pass_at", "At least 1", evaluation__pass_at=[0])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    raise RuntimeError('no judge')", ["RuntimeError: no judge", "problem held-0 of data.eval.held"]),
        ("    return None", ["no score"]),
        ("    return 1 / len(kwargs['solution_str'])", ["ZeroDivisionError", "response ''"]),
        ("    import missing_library", ["missing_library"]),
        ("    import sys; sys.exit(3)", ["trial of the verifier"]),
    ],
)
def test_a_verifier_that_raises(tmp_path, body, words):
    def write():
        (tmp_path / "verifier.py").write_text(f"def score(*args, **kwargs):\n{body}\n")

    refuse(tmp_path, "verifier", *words, prepare=write)


def answer(text):
    return lambda row: row["reward_model"].update(ground_truth=text)


@pytest.mark.parametrize(
    ("verifier", "truth", "word"),
    [
        ("math", None, "no ground truth"),
        ("math", " ", "no ground truth"),
        ("math", "\\frac{1}{2", "not balanced"),
        ({"name": "math", "convention": "dapo"}, "one half", "integers"),
    ],
)
@pytest.mark.parametrize(("name", "key"), [("train", "data.train"), ("held", "data.eval.held")])
def test_answers_that_do_not_parse(tmp_path, verifier, truth, word, name, key):
    error = refuse(
        tmp_path,
        key,
        word,
        verifier=verifier,
        prepare=lambda: broken(tmp_path / f"{name}.parquet", answer(truth)),
    )
    assert "problem problem-" in str(error) or "problem held-" in str(error)


def test_problems_that_a_verifier_of_entries_cannot_score(tmp_path):
    refuse(tmp_path, "extra_info.entry", "reasoning-gym entry", "problem held-0", verifier="reasoning_gym")


def write_problems_empty(path):
    import pyarrow.parquet as pq

    write_problems(path, [1])
    pq.write_table(pq.read_table(path).slice(0, 0), path)


@pytest.mark.parametrize(
    ("verl", "labels", "key", "words"),
    [
        ({"data.train_batch_size": 16}, 16, "data.train_batch_size", ["8 problems"]),
        ({"data.train_batch_size": None}, 16, "data.train_batch_size", []),
        ({"actor_rollout_ref.actor.ppo_mini_batch_size": 8}, 16, "ppo_mini_batch_size", ["At most 4"]),
        ({"actor_rollout_ref.actor.ppo_mini_batch_size": 3}, 16, "ppo_mini_batch_size", ["divisor of 4"]),
        (
            {**FIXED, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 3},
            16,
            "ppo_micro_batch_size_per_gpu",
            ["divisor of 8"],
        ),
        ({**FIXED, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": None}, 16, "ppo_micro_batch_size", []),
        ({**BY_TOKENS, **SEQUENCES}, 16, "ppo_micro_batch_size", ["cut by tokens"]),
        ({**SEQUENCES, "actor_rollout_ref.actor.ppo_mini_batch_size": 3}, 16, "ppo_mini_batch_size", ["divisor of 4"]),
        ({"actor_rollout_ref.rollout.n": 0}, 16, "rollout.n", []),
        ({**FIXED, "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": None}, 16, "ref.log_prob_micro", []),
    ],
)
def test_batch_sizes_that_verl_would_reject(tmp_path, verl, labels, key, words):
    refuse(tmp_path, key, *words, stages__opd__verl={**GOOD, **verl}, data__labels=labels)


def test_batches_that_do_not_divide_among_gpus(tmp_path):
    refuse(tmp_path, "ppo_mini_batch_size", "3 data-parallel ranks", cluster__gpus_per_node=3)


def test_warmup_batches_that_the_worker_would_reject(tmp_path):
    warmup, micro = {"data.train_batch_size": 6}, {"data.micro_batch_size_per_gpu": 4}
    tokens = {"data.use_dynamic_bsz": True}
    refuse(tmp_path, "data.micro_batch_size_per_gpu", "cut by tokens", stages__warmup__verl=warmup | micro | tokens)
    for fixed in ({}, {"data.use_dynamic_bsz": False}):
        refuse(tmp_path, "data.micro_batch_size_per_gpu", "divisor of 6", stages__warmup__verl=warmup | micro | fixed)
    refuse(
        tmp_path,
        "data.train_batch_size",
        "multiple of 4",
        stages__teacher_rl__verl=GOOD,
        stages__warmup__verl=warmup,
        cluster__gpus_per_node=4,
    )


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("data.train_bath_size", "Did you mean data.train_batch_size?"),
        ("actor_rollout_ref.actor.optim.learning", "To add a new key"),
        ("+data.train_batch_size", "without +"),
    ],
)
def test_verl_keys_that_hydra_would_refuse(tmp_path, key, word):
    chosen = {k: v for k, v in GOOD.items() if k != key.lstrip("+")} | {key: 4}
    refuse(tmp_path, key, word, stages__opd__verl=chosen)


def test_our_overlays_use_keys_that_verl_has():
    assert len(verl_keys("dp")) > 500 and "actor_rollout_ref.actor.ppo_mini_batch_size" in verl_keys("dp")


@pytest.mark.parametrize(
    ("verifier", "words"),
    [
        ("reasoning_gim", ["Did you mean reasoning_gym?"]),
        ("none.py:score", ["none.py"]),
        ("verifier.py:scor", ["Did you mean score?"]),
    ],
)
def test_unknown_verifiers(tmp_path, verifier, words):
    refuse(tmp_path, "verifier", *words, verifier=verifier)


def test_missing_scripts_and_what_they_use(tmp_path):
    refuse(tmp_path, "student", "nothing.py", student={"script": "nothing.py"})
    write_scripts(tmp_path)
    refuse(tmp_path, "student", "gone.py", student={"script": "pretrain.py", "uses": ["gone.py"]})


@pytest.mark.parametrize("version", ["0.9.0", "0.10.0", "0.8.0"])
def test_wrong_verl_version(monkeypatch, version):
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    with pytest.raises(UserError, match=version) as caught:
        check_versions()
    assert "pip install" in caught.value.remedy


def test_a_run_directory_of_another_recipe_is_refused_before_anything(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"recipe": "other", "id": "x"}))
    refuse(tmp_path, "--run-dir", "other")
