"""`verl-s2d gc` on a model of run trees: it never takes what a kept row needs, and takes all the rest, once."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.workflow.damage import truncate
from tests.support.workflow.project import SimulatedStages, write_project
from tests.support.workflow.runs import Lines, checkpoint, manifests
from verl_s2d import cli
from verl_s2d.errors import UserError
from verl_s2d.recipe.data_settings import Data
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.schema import Recipe
from verl_s2d.report.command_text import gc_text, size_text
from verl_s2d.stages import stages
from verl_s2d.stages.planning import make_plan, plan_to_keep
from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.ledger import empty_ledger
from verl_s2d.workflow.plan import Plan, Row
from verl_s2d.workflow.runner import run_plan
from verl_s2d.workflow.stage import Context
from verl_s2d.workflow.store import checkpoints
from verl_s2d.workflow.store.gc import collect, find_waste
from verl_s2d.workflow.store.manifest import MANIFEST, is_built, write_manifest
from verl_s2d.workflow.store.run_directory import opened
from verl_s2d.workflow.store.verify import verify_run


@pytest.fixture(autouse=True)
def _no_real_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)


@st.composite
def run_trees(draw):
    """(nodes of a random graph, which of them are targets of kept rows, state of each node's directory)."""
    nodes: list[Node] = []
    for i in range(draw(st.integers(1, 8))):
        chosen = draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        kind = draw(st.sampled_from(["script", "slices", "grpo", "opd", "evaluate"]))
        nodes.append(Node(stages()[kind], f"n{i}", {"i": i}, {f"r{j}": nodes[j] for j in chosen}))
    kept = draw(st.lists(st.sampled_from(nodes), unique_by=id, max_size=3))
    states = st.sampled_from(["missing", "finished", "unfinished", "resumable", "torn", "link", "leftovers"])
    return nodes, kept, [draw(states) for _ in nodes]


def make(directory: Path, node: Node, state: str, outside: Path) -> None:
    """One stage's directory in one of the states a run can leave."""
    if state == "missing":
        return
    if state == "link":
        target = outside / node.label
        make(target, node, "finished", outside)
        directory.symlink_to(target)
        return
    directory.mkdir(parents=True)
    (directory / "log.txt").write_text("log")
    saved = directory / "checkpoints"
    if state in ("finished", "leftovers"):
        (directory / "output").write_bytes(b"x" * 100)
        write_manifest(node, directory, ledger=empty_ledger(), seconds=1.0, attempts=1)
    if state == "leftovers":
        checkpoint(saved / "global_step_2" / "data.pt")
        (directory / ".manifest.json.tmp").touch()
    if state in ("resumable", "torn"):
        for step in (2, 4, 6):
            checkpoint(saved / f"global_step_{step}" / "actor" / "model_world_size_1_rank_0.pt")
            checkpoint(saved / f"global_step_{step}" / "data.pt")
        (saved / checkpoints.TRACKER).write_text("4" if state == "resumable" else "")
        checkpoint(saved / "damaged_global_step_5" / "data.pt")
        (saved / "elsewhere").symlink_to(outside)


def snapshot(directory: Path) -> dict[str, str]:
    """Map the files of a directory to their content; links to their targets."""
    found = {}
    for folder, folders, files in os.walk(directory):
        for name in [*files, *(f for f in folders if (Path(folder) / f).is_symlink())]:
            path = Path(folder) / name
            found[str(path.relative_to(directory))] = (
                os.readlink(path) if path.is_symlink() else path.read_text("latin1")
            )
    return found


def plan_of(run_dir: Path, targets: list[Node]) -> Plan:
    data = Data(train="train.parquet", eval={"held": "held.parquet"}, prompt_tokens=8, response_tokens=8)
    recipe = Recipe(name="tiny", student="student", data=data, verifier="math")
    return Plan(recipe, [Row(f"row-{i}", 0, target) for i, target in enumerate(targets)], Context(run_dir))


@settings(max_examples=60, deadline=None)
@given(run_trees())
def test_what_kept_rows_need_stays_and_the_rest_goes_once(tree):
    nodes, targets, states = tree
    with tempfile.TemporaryDirectory() as scratch:
        run_dir, outside = Path(scratch) / "run", Path(scratch) / "outside"
        outside.mkdir()
        (outside / "precious").write_text("not ours")
        with opened(run_dir, "tiny"):
            pass
        stages = run_dir / "stages"
        for node, state in zip(nodes, states, strict=True):
            make(stages / node.label, node, state, outside)
        (stages / ".damaged" / "grpo-000000000000.1").mkdir(parents=True)
        for stranger in ("notes.txt", "my-models"):
            (stages / stranger).mkdir()
        plan = plan_of(run_dir, targets)
        needed = {n.label for target in targets for n in ancestors(target)}
        before, elsewhere = snapshot(run_dir), snapshot(outside)
        missing = [n.label for n in plan.missing()]
        resumes = {label: checkpoints.completed_step(stages / label / "checkpoints") for label in needed}

        dry = collect(plan, delete=False)
        assert snapshot(run_dir) == before, "a dry run changes nothing"
        done = collect(plan, delete=True)
        assert [(w.path, w.bytes) for w in done.waste] == [(w.path, w.bytes) for w in dry.waste]

        assert [n.label for n in plan.missing()] == missing, "what is built stays built"
        after = snapshot(run_dir)
        for label, step in resumes.items():
            assert checkpoints.completed_step(stages / label / "checkpoints") == step
            prefix = f"stages/{label}/"
            lost = {name.removeprefix(prefix) for name in before if name.startswith(prefix) and name not in after}
            assert all(name.startswith(("checkpoints/", ".manifest.json.tmp")) for name in lost)
            assert step is None or not any(name.startswith(f"checkpoints/global_step_{step}/") for name in lost)
        assert {p.name for p in stages.iterdir()} == {
            *(n.label for n, state in zip(nodes, states, strict=True) if n.label in needed and state != "missing"),
            "notes.txt",
            "my-models",
        }
        assert snapshot(outside) == elsewhere, "nothing outside is touched"
        assert all(after[name] == before[name] for name in after)
        assert collect(plan, delete=True).waste == [] and snapshot(run_dir) == after, "twice is once"


def run(plan: Plan) -> SimulatedStages:
    launcher = SimulatedStages()
    assert run_plan(plan, Lines(), launcher=launcher) == []
    return launcher


def test_of_a_real_run_only_the_old_settings_go(tmp_path, capsys):
    recipe = write_project(tmp_path, rows=["direct-grpo"])
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run")
    run(plan)
    recipe = write_project(tmp_path, rows=["direct-grpo"], stages__student_rl__steps=2)
    plan = make_plan(load_recipe(recipe), run_dir=tmp_path / "run")
    run(plan)
    run(make_plan(load_recipe(recipe), run_dir=tmp_path / "run", rows=["half-split"], seeds=[1]))
    before = manifests(plan)
    assert cli.main(["gc", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "student-rl-all: no kept row needs it" in out and "Nothing was removed" in out and "half-split" in out
    assert cli.main(["gc", str(tmp_path / "run"), "--delete", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["waste"]) == 2 and data["deleted"], "Stage 3 of before and its evaluation; nothing of seed 1"
    assert data["kept"] == {"rows": ["direct-grpo", "half-split"], "seeds": [0, 1]}
    assert manifests(plan) == before and run(plan).started == [] and verify_run(tmp_path / "run").ok
    assert cli.main(["gc", str(recipe), "--run-dir", str(tmp_path / "run"), "--seeds", "0", "--delete"]) == 0
    assert "removed" in capsys.readouterr().out
    assert run(plan).started == [] and verify_run(tmp_path / "run").ok


def test_a_directory_in_use_is_left_alone(tmp_path):
    plan = make_plan(load_recipe(write_project(tmp_path)), run_dir=tmp_path / "run", rows=["direct-grpo"])
    with pytest.raises(UserError, match="not the directory of a run"):
        collect(plan, delete=True)
    run(plan)
    empty = plan_of(tmp_path / "run", [])
    with opened(tmp_path / "run", "tiny"):
        assert len(collect(empty, delete=False).waste) == len(plan.order)
        assert "--delete would be refused" in gc_text(collect(empty, delete=False).data())
        with pytest.raises(UserError, match="Another run"):
            collect(empty, delete=True)
    assert not plan.missing()


def test_processes_of_a_killed_run_count_as_use(tmp_path, monkeypatch):
    plan = make_plan(load_recipe(write_project(tmp_path)), run_dir=tmp_path / "run", rows=["direct-grpo"])
    run(plan)
    monkeypatch.setattr("verl_s2d.workflow.store.gc.marked_processes", lambda run_id: [17])
    with pytest.raises(UserError, match="still work in this directory"):
        collect(plan_of(tmp_path / "run", []), delete=True)
    assert not plan.missing()


def test_the_fallback_of_a_damaged_checkpoint_is_kept(tmp_path):
    node = Node(stages()["grpo"], "n", {})
    with opened(tmp_path, "tiny"):
        pass
    saved = tmp_path / "stages" / node.label / "checkpoints"
    make(saved.parent, node, "resumable", tmp_path)
    truncate(saved / "global_step_4" / "data.pt")
    collect(plan_of(tmp_path, [node]), delete=True)
    assert {p.name for p in saved.glob("global_step_*")} == {"global_step_2", "global_step_4", "global_step_6"}


def test_checkpoints_that_an_alarm_may_choose_are_kept(tmp_path):
    node = Node(stages()["grpo"], "n", {"stopped_by": {"alarms": {"loss": "stop"}, "save_every": 2}})
    with opened(tmp_path, "tiny"):
        pass
    saved = tmp_path / "stages" / node.label / "checkpoints"
    make(saved.parent, node, "resumable", tmp_path)
    collect(plan_of(tmp_path, [node]), delete=True)
    assert {p.name for p in saved.glob("global_step_*")} == {"global_step_2", "global_step_4"}, "6 was never finished"


def test_an_interrupted_removal_is_finished_by_the_next(tmp_path, monkeypatch):
    nodes = [Node(stages()["grpo"], "n", {"i": i}) for i in range(3)]
    with opened(tmp_path, "tiny"):
        pass
    for node in nodes:
        make(tmp_path / "stages" / node.label, node, "finished", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            collect(plan_of(tmp_path, []), delete=True)
    assert sum((p / MANIFEST).exists() for p in (tmp_path / "stages").glob("grpo-*")) == 2
    assert any(".removed" in str(waste.path) for waste in find_waste(plan_of(tmp_path, [])))
    collect(plan_of(tmp_path, []), delete=True)
    assert list((tmp_path / "stages").iterdir()) == []


def test_a_mount_is_left_alone(tmp_path, monkeypatch):
    node = Node(stages()["grpo"], "n", {})
    with opened(tmp_path, "tiny"):
        pass
    directory = tmp_path / "stages" / node.label
    make(directory, node, "finished", tmp_path)
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(directory))
    collection = collect(plan_of(tmp_path, []), delete=True)
    assert is_built(node, directory) and collection.bytes == 0 and "another file system" in gc_text(collection.data())


def test_a_directory_that_names_no_recipe(tmp_path):
    with opened(tmp_path / "run", "tiny"):
        pass
    with pytest.raises(UserError, match="Give the recipe"):
        plan_to_keep(tmp_path / "run", None, None, None)


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")])
def test_sizes(size, text):
    assert size_text(size) == text
