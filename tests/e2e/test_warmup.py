"""Stage 2a as a plain command: its own local Ray, killed in the middle, run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.tiny import WORDS, write_model
from verl_s2d.verl_settings.overrides import hydra_arguments, merge, overlay

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS, SAVE_EVERY, LIMIT_SECONDS = 40, 8, 400


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("warmup")
    write_model(directory / "student", seed=0)
    write_model(directory / "teacher", seed=1, layers=3, hidden=64)
    generator = torch.Generator().manual_seed(0)
    rollouts = [
        {
            "prompt_ids": torch.randint(3, len(WORDS), (4,), generator=generator).tolist(),
            "response_ids": [*torch.randint(3, len(WORDS), (1 + i % 6,), generator=generator).tolist(), 1],
        }
        for i in range(21)
    ]
    pq.write_table(pa.Table.from_pylist(rollouts), directory / "rollouts.parquet")
    return directory


def start(artefacts: Path, out: Path, attempt: int, **overrides) -> subprocess.Popen:
    keys = {
        "model.path": str(artefacts / "student"),
        "s2d.teacher.path": str(artefacts / "teacher"),
        "data.train_files": str(artefacts / "rollouts.parquet"),
        "data.train_batch_size": 8,
        "optim.lr": 1e-3,
        "trainer.total_training_steps": STEPS,
        "trainer.save_freq": SAVE_EVERY,
        "trainer.default_local_dir": str(out / "checkpoints"),
        "trainer.logger": ["console", "file"],
        "hydra.run.dir": str(out / "hydra"),
    }
    arguments = hydra_arguments(merge(overlay("warmup"), overlay("cpu", "warmup"), keys, overrides))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"VERL_FILE_LOGGER_PATH": str(out / f"attempt-{attempt}.jsonl"), "OMP_NUM_THREADS": "1"}
    with open(out / "log.txt", "ab") as log:
        command = [sys.executable, "-m", "verl_s2d.stages.warmup.trainer", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def metrics(out: Path, attempt: int) -> dict[int, dict[str, float]]:
    path = out / f"attempt-{attempt}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # The last line may be half written.
    return {line["step"]: line["data"] for line in map(json.loads, (x for x in lines if x.endswith("\n")))}


@pytest.mark.timeout(900)
def test_killed_in_the_middle_it_continues_at_the_same_batch_and_hands_over_a_model(artefacts, tmp_path):
    first = start(artefacts, tmp_path, 1)
    deadline = time.monotonic() + LIMIT_SECONDS
    while max(metrics(tmp_path, 1), default=0) <= SAVE_EVERY:
        assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-3000:]
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    before = metrics(tmp_path, 1)
    assert max(before) < STEPS

    second = start(artefacts, tmp_path, 2)
    assert second.wait(LIMIT_SECONDS) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    after = metrics(tmp_path, 2)
    resumed = min(after)
    assert resumed > 1 and (resumed - 1) % SAVE_EVERY == 0 and max(after) == STEPS
    repeated = sorted(before.keys() & after.keys())
    assert repeated or resumed == max(before) + 1
    for step in repeated:
        for name in ("train/forward_kl", "train/grad_norm", "train/teacher_scored_tokens", "train/lr"):
            assert after[step][name] == pytest.approx(before[step][name], rel=1e-5), (step, name)

    log = before | after
    assert sorted(log) == list(range(1, STEPS + 1))
    assert log[STEPS]["train/forward_kl"] < 0.8 * log[1]["train/forward_kl"]
    for data in log.values():
        assert data["train/loss"] == pytest.approx(data["train/forward_kl"], rel=1e-5)
        assert isinstance(data["train/teacher_scored_tokens"], int) and 0 <= data["train/top1_agreement"] <= 1
        assert min(data["train/student_entropy"], data["train/teacher_entropy"], data["train/grad_norm"]) > 0

    export = tmp_path / "checkpoints" / f"global_step_{STEPS}" / "huggingface"
    trained, initial = (AutoModelForCausalLM.from_pretrained(d) for d in (export, artefacts / "student"))
    assert len(AutoTokenizer.from_pretrained(export)) == len(WORDS)
    assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), initial.parameters(), strict=True))


@pytest.mark.timeout(300)
def test_workers_without_a_place_in_the_cluster_are_refused_instead_of_waited_for(artefacts, tmp_path):
    short = {"+ray_kwargs.ray_init.num_gpus": 1, "trainer.n_gpus_per_node": 2}
    run = start(artefacts, tmp_path, 1, **short)
    assert run.wait(240) == 2, (tmp_path / "log.txt").read_text()[-3000:]
    log = (tmp_path / "log.txt").read_text()
    assert "key:    trainer.n_gpus_per_node" in log and "Traceback" not in log
