"""A damaged file is found before a stage reads it, named, and what it belongs to is built again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.workflow.damage import DAMAGES, flip, remove, truncate
from tests.support.workflow.project import SimulatedStages, write_safetensors
from tests.support.workflow.runs import Lines, checkpoint, directory, manifests, project, simulate
from verl_s2d.data.content import full_digest
from verl_s2d.errors import UserError
from verl_s2d.report.inputs import finished_rows
from verl_s2d.workflow.store import checkpoints, digests
from verl_s2d.workflow.store.digests import damage, describe_outputs, known_digest
from verl_s2d.workflow.store.manifest import MANIFEST, inspect_manifest, read_manifest
from verl_s2d.workflow.store.run_directory import read_record
from verl_s2d.workflow.store.saved_weights import checkpoint_problems


@pytest.fixture(autouse=True)
def _no_real_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("FAKE", raising=False)


def forget(plan, *names: str) -> None:
    for name in names:
        shutil.rmtree(directory(plan, name))


@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize(
    ("stage", "file", "forgotten"),
    [
        ("slices", "2h.parquet", ["student-rl-2h"]),
        ("rollouts-1h", "rollouts.parquet", ["warmup-1h"]),
        ("rollouts-1h", "rollouts.json", ["warmup-1h"]),
        ("teacher-rl-1h", "model/model.safetensors", ["opd-1h"]),
        ("opd-1h", "model/config.json", ["student-rl-2h"]),
        ("evaluate-half-split", "result.json", []),
    ],
)
def test_a_damaged_output_is_built_again_before_it_is_read(tmp_path, harm, stage, file, forgotten):
    plan = project(tmp_path)
    assert simulate(plan) == []
    forget(plan, *forgotten)
    before = manifests(plan)
    harm(directory(plan, stage) / file)
    launcher, progress = SimulatedStages(), Lines()
    assert simulate(plan, launcher, progress) == []
    assert len(launcher.started) == 1 + len(forgotten)
    assert any(f"{stage} is damaged" in note and file in note for note in progress.notes)
    after = manifests(plan)
    assert {name for name in before if before[name] != after[name]} == {stage}
    assert (tmp_path / "run" / "stages" / ".damaged" / f"{directory(plan, stage).name}.1").is_dir()
    assert len(finished_rows(plan)) == 1 and not plan.missing()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def without_outputs(path: Path) -> None:
    path.write_text(path.read_text().replace('"outputs"', '"outpuds"'))


@pytest.mark.parametrize("harm", [truncate, cut, without_outputs])
def test_a_damaged_manifest_is_written_again_without_the_work(tmp_path, harm):
    plan = project(tmp_path, rows=["direct-grpo"])
    simulate(plan)
    stage = directory(plan, "student-rl-all")
    ledger = read_manifest(stage)["ledger"]
    harm(stage / MANIFEST)
    assert read_manifest(stage) is None and inspect_manifest(stage)[1]
    with pytest.raises(UserError, match="student-rl-all is damaged"):
        finished_rows(plan)
    launcher, progress = SimulatedStages(), Lines()
    assert simulate(plan, launcher, progress) == [] and launcher.started == [], "its work is not repeated"
    assert any(MANIFEST in note for note in progress.notes)
    assert {**read_manifest(stage)["ledger"], "seconds": 0} == {**ledger, "seconds": 0}


def test_stages_that_version_0_1_has_finished_are_finished(tmp_path):
    plan = project(tmp_path, rows=["direct-grpo"])
    simulate(plan)
    path = directory(plan, "student-rl-all") / MANIFEST
    path.write_text(json.dumps({"format": 2, **json.loads(path.read_text()), "seal": "0" * 64}, indent=1) + "\n")
    launcher = SimulatedStages()
    assert not plan.missing() and simulate(plan, launcher) == [] and launcher.started == []


def test_a_model_that_lost_its_manifest_and_is_damaged_is_trained_again(tmp_path):
    plan = project(tmp_path, rows=["direct-grpo"])
    simulate(plan)
    stage = directory(plan, "student-rl-all")
    (stage / MANIFEST).unlink()
    truncate(stage / "model" / "model.safetensors")
    launcher, progress = SimulatedStages(), Lines()
    assert simulate(plan, launcher, progress) == [] and len(launcher.started) == 1
    assert any("model is damaged" in note for note in progress.notes)


def test_a_file_that_goes_bad_while_the_run_works_stops_the_stage_that_would_read_it(tmp_path):
    plan = project(tmp_path)

    class Harmful(SimulatedStages):
        def start(self, argv, env, cwd, log):
            if Path(cwd).name.startswith("warmup"):
                flip(directory(plan, "teacher-rl-1h") / "model" / "model.safetensors", 0.99)
            return super().start(argv, env, cwd, log)

    (failure,) = simulate(plan, Harmful())
    assert "opd-1h did not start" in str(failure) and "model/model.safetensors" in str(failure)
    assert simulate(plan) == [] and not plan.missing()


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_run_outlives_its_record(tmp_path, harm):
    plan = project(tmp_path, rows=["direct-grpo"])
    simulate(plan)
    harm(tmp_path / "run" / "run.json")
    launcher = SimulatedStages()
    assert simulate(plan, launcher) == [] and launcher.started == []
    assert read_record(tmp_path / "run")["recipe"] == "tiny"


@pytest.mark.parametrize("left", [["lock"], ["lock", ".run.json.tmp"], ["lock", "stages/"]])
def test_a_kill_while_the_directory_is_made_does_not_lock_it_for_good(tmp_path, left):
    plan = project(tmp_path, rows=["direct-grpo"])
    for name in left:
        path = tmp_path / "run" / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    assert simulate(plan) == []


def test_a_step_checkpoint_that_was_cut_short_is_not_resumed_from(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE", json.dumps({"grpo": "crash@4"}))
    plan = project(tmp_path, rows=["direct-grpo"], stages__student_rl__save_every=1)
    simulate(plan)
    saved = directory(plan, "student-rl-all") / "checkpoints"
    truncate(checkpoint(saved / "global_step_3" / "actor" / "model_world_size_1_rank_0.pt"))
    progress = Lines()
    assert simulate(plan, progress=progress) == []
    assert any("global_step_3/actor/model_world_size_1_rank_0.pt" in note for note in progress.notes)
    assert "starting at 2" in (directory(plan, "student-rl-all") / "log.txt").read_text()
    assert read_manifest(directory(plan, "student-rl-all"))["ledger"]["sampled_tokens"] == 80


def test_without_a_whole_checkpoint_the_stage_begins_again(tmp_path):
    for step in (1, 2):
        checkpoint(tmp_path / f"global_step_{step}" / "data.pt")
        truncate(checkpoint(tmp_path / f"global_step_{step}" / "actor" / "optim_world_size_1_rank_0.pt"))
    (tmp_path / checkpoints.TRACKER).write_text("2")
    assert len(checkpoints.set_aside_damaged(tmp_path)) == 2
    assert checkpoints.completed_step(tmp_path) is None and not (tmp_path / checkpoints.TRACKER).exists()


def test_checkpoint_files_that_were_cut_short_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"weight": torch.arange(4096.0)}, tmp_path / "model.pt")
    write_safetensors(tmp_path / "model.safetensors", {"weight": bytes(4096)})
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert checkpoint_problems(tmp_path) == []
    for path in tmp_path.iterdir():
        truncate(path)
    found = checkpoint_problems(tmp_path)
    assert [problem.partition(":")[0] for problem in found] == ["config.json", "model.pt", "model.safetensors"]
    assert all("cut short or overwritten" in problem for problem in found)


def test_a_file_is_read_once_as_long_as_it_stays(tmp_path, monkeypatch):
    path, reads = tmp_path / "model.safetensors", []
    path.write_bytes(b"a" * 1000)
    os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(digests, "full_digest", lambda path: reads.append(1) or full_digest(path))
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 0.0)
    first = known_digest(path)
    assert known_digest(path) == first and len(reads) == 1
    path.write_bytes(b"b" * 1000)
    os.utime(path, (1e9, 1e9))
    assert known_digest(path) != first and len(reads) == 2, "the change time tells, even when the other was put back"
    copy = tmp_path / "copy"
    shutil.copy(path, copy)
    os.replace(copy, path)
    assert known_digest(path) and len(reads) == 3


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a")
    known_digest(path)
    assert str(path) not in digests._known


def test_damage_is_named_by_file(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(bytes(1000))
    recorded = describe_outputs(tmp_path)
    assert damage(tmp_path, recorded) == []
    flip(tmp_path / "a"), truncate(tmp_path / "b"), remove(tmp_path / "c")
    found = damage(tmp_path, recorded)
    assert [line.partition(":")[0] for line in found] == ["a", "b", "c"]
    assert "sha256" in found[0] and "500 bytes" in found[1] and "missing" in found[2]
