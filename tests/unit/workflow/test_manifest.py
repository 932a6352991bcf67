"""A stage is done when its manifest says so, and a manifest is all there or not there at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.workflow.project import write_model, write_safetensors
from verl_s2d.data.files import write_json
from verl_s2d.logs import last_lines
from verl_s2d.metrics.metric_logs import last_step, read_metrics
from verl_s2d.stages import stages
from verl_s2d.verifiers.ledgered import verifier_calls
from verl_s2d.workflow import attempts
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.ledger import add_ledgers, empty_ledger, sum_over_steps
from verl_s2d.workflow.store import checkpoints
from verl_s2d.workflow.store.manifest import MANIFEST, is_built, read_manifest, write_manifest
from verl_s2d.workflow.store.saved_weights import export_problem

NODE = Node(stages()["opd"], "opd", {"steps": 2})


def write(directory: Path, node: Node = NODE) -> dict:
    write_manifest(node, directory, ledger=empty_ledger(), seconds=1.5, attempts=1)
    return read_manifest(directory)


def test_manifest_of_this_node_and_no_other(tmp_path):
    assert not is_built(NODE, tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.bin").write_bytes(b"abc")
    (tmp_path / "log.txt").write_text("noise")
    manifest = write(tmp_path)
    assert is_built(NODE, tmp_path)
    assert not is_built(Node(stages()["opd"], "opd", {"steps": 3}), tmp_path)
    assert [(o["name"], o["bytes"]) for o in manifest["outputs"]] == [("model/x.bin", 3)]
    assert len(manifest["outputs"][0]["sha256"]) == 64 and "verl" in manifest["versions"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": "a"}'])
def test_a_damaged_manifest_is_no_manifest(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    assert not is_built(NODE, tmp_path)


WRITER = """
import sys
sys.path.insert(0, {root!r})
from verl_s2d.data.files import write_json
print("go", flush=True)
while True:
    for letter in "ab":
        write_json(letter * 200000, {path!r})
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path, root = tmp_path / MANIFEST, str(ROOT)
    for delay in (0.01, 0.05, 0.2):
        code = WRITER.format(root=root, path=str(path))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"go\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        if path.exists():
            assert len(json.loads(path.read_text())) == 200000
    assert path.exists()


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    write(tmp_path)
    before = (tmp_path / MANIFEST).read_text()
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("killed between")))
    with pytest.raises(OSError, match="killed"):
        write_json("new", tmp_path / MANIFEST)
    assert (tmp_path / MANIFEST).read_text() == before and os.listdir(tmp_path) == [MANIFEST]


def test_whole_export_passes(tmp_path):
    assert export_problem(write_model(tmp_path / "m")) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda m: (m / "config.json").unlink(), "config.json"),
        (lambda m: (m / "config.json").write_text("{"), "config.json"),
        (lambda m: (m / "tokenizer.json").unlink(), "tokenizer"),
        (lambda m: (m / "model.safetensors").unlink(), "no *.safetensors"),
        (lambda m: cut(m / "model.safetensors"), "bytes long"),
        (lambda m: (m / "model.safetensors").write_bytes(b"\x00"), "shorter"),
        (lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 64), "header"),
        (lambda m: write_safetensors(m / "model.safetensors", {}), "no tensor"),
        (lambda m: write_safetensors(m / "model-2.safetensors", {"x": b"1"}), "without model.safetensors.index.json"),
        (
            lambda m: (m / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"weight": "model.safetensors", "bias": "model.safetensors"}})
            ),
            "bias",
        ),
    ],
)
def test_half_written_exports_are_found(tmp_path, damage, word):
    model = write_model(tmp_path / "m")
    damage(model)
    assert word in export_problem(model)


def test_metrics_of_all_attempts_are_merged_and_later_ones_win(tmp_path):
    (tmp_path / "metrics").mkdir()
    lines = {1: [(1, 10), (2, 20), (3, 30)], 2: [(3, 31), (4, 40)], 10: [(5, 50)]}
    for attempt, entries in lines.items():
        text = "".join(json.dumps({"step": s, "data": {"x": x}}) + "\n" for s, x in entries)
        (tmp_path / "metrics" / f"attempt-{attempt}.jsonl").write_text(text + '{"step": 9, "da')
    assert {s: d["x"] for s, d in read_metrics(tmp_path).items()} == {1: 10, 2: 20, 3: 31, 4: 40, 5: 50}
    assert last_step(tmp_path / "metrics" / "attempt-2.jsonl") == 4
    assert last_step(tmp_path / "none") is None


def test_a_step_whose_line_a_kill_took_counts_with_the_mean():
    assert sum_over_steps({1: {"t": 10}, 3: {"t": 20}, 9: {"t": 99}}, 3, lambda d: d.get("t")) == 45
    assert sum_over_steps({}, 3, lambda d: d.get("t")) == 0


def test_verifier_calls_are_counted_and_labels_are_a_set(tmp_path):
    (tmp_path / "verifier").mkdir()
    (tmp_path / "verifier" / "a.jsonl").write_text('{"id": "p2"}\n{"id": "p1"}\n{"id": "p1"}\n{"i')
    (tmp_path / "verifier" / "b.jsonl").write_text('{"id": "p3"}\n{"unsettled": "too slow", "problem": "p3"}\n')
    (tmp_path / "verifier" / "c.jsonl").write_text(
        '{"prompt": "q2"}\n{"prompt": "q1"}\n{"label": "p2"}\n{"prompt": "q2"}\n'
    )
    assert verifier_calls(tmp_path) == {
        "labels_read": ["p1", "p2", "p3"],
        "prompts_read": ["q1", "q2"],
        "verifier_calls": 5,
        "unsettled_calls": 1,
        "unscored_calls": 0,
        "judge_calls": 0,
        "judge_tokens": 0,
    }


def test_ledgers_are_united_and_summed():
    a = empty_ledger(1.0) | {"labels_read": ["x", "y"], "verifier_calls": 2, "updates": 1}
    b = empty_ledger(2.0) | {"labels_read": ["y"], "verifier_calls": 3, "sampled_tokens": 4}
    del a["prompts_read"]  # as of an earlier version
    b["prompts_read"] = ["q"]
    total = add_ledgers([a, b])
    assert total["prompts_read"] == ["q"]
    assert total["labels_read"] == ["x", "y"] and total["verifier_calls"] == 5 and total["seconds"] == 3.0


def test_time_of_a_killed_attempt_ends_with_its_last_sign_of_life(tmp_path):
    first = attempts.begin(tmp_path)
    path = tmp_path / "attempts" / "attempt-1.json"
    path.write_text(json.dumps({"started": 1000.0, "ended": None, "exit": None}))
    os.utime(path, (900, 900))
    log = tmp_path / "log.txt"
    log.touch()
    os.utime(log, (1060, 1060))
    for directory in (tmp_path, tmp_path / "attempts"):
        os.utime(directory, (900, 900))
    assert attempts.is_open(tmp_path)
    assert attempts.begin(tmp_path) == first + 1 == 2
    attempts.end(tmp_path, 2, 0, 1.5)
    assert not attempts.is_open(tmp_path)
    assert attempts.seconds_spent(tmp_path) == 61.5


def test_tracker_repair(tmp_path):
    checkpoints.repair(tmp_path / "none")
    for step in (2, 4, 6):
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
        (tmp_path / f"global_step_{step}" / "actor" / "model_world_size_1_rank_0.pt").touch()
    for step in (2, 4):
        (tmp_path / f"global_step_{step}" / "data.pt").touch()
    tracker = tmp_path / checkpoints.TRACKER
    checkpoints.repair(tmp_path)
    assert not tracker.exists()
    tracker.write_text("")
    checkpoints.repair(tmp_path)
    assert checkpoints.completed_step(tmp_path) == 4
    tracker.write_text("2")
    checkpoints.repair(tmp_path)
    assert checkpoints.completed_step(tmp_path) == 2


def test_log_lines_worth_showing(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("useful\n\nUserWarning: old\nTraining:  10%|# | 1/10 [00:01<00:09, 1.0s/it]\nValueError: bad\n")
    assert last_lines(log, 5) == ["useful", "ValueError: bad"]
    worker = "\x1b[36m(WorkerDict pid=44)\x1b[0m"
    log.write_text(f"{worker}   warnings.warn(\n{worker}\n{worker} KeyError: 'x'\x1b[32m [repeated 2x]\x1b[0m\n")
    assert last_lines(log, 5) == ["(WorkerDict pid=44) KeyError: 'x' [repeated 2x]"]
    assert last_lines(tmp_path / "none", 5) == []
