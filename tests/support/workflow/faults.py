"""A run of the minimal recipe as a process of its own: watch it, kill parts of it, look at what it left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support.paths import ROOT
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.workflow.hosts.process import kill_marked, marked_processes
from verl_s2d.workflow.store.manifest import MANIFEST
from verl_s2d.workflow.store.run_directory import read_record
from verl_s2d.workflow.store.verify import verify_run

MINIMAL = ROOT / "tests" / "e2e" / "minimal"
PLANTED = {
    "HF_TOKEN": "hf_PlantedPlantedPlanted01",
    "WANDB_API_KEY": "planted-wandb-0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+0123456789abcdef",
}
"""In the environment of every run here."""
PLANTED_IN_RECIPE = "planted-in-the-recipe-0123456789"

VICTIMS = {
    "driver": r"-m verl(\.trainer\.main_ppo|_s2d\.stages\.\w+\.(trainer|rollout_cache|sample_and_score)) ",
    "worker": r"^ray::(WorkerDict|WarmupWorker)",
    "vllm server": r"^ray::(GroupServer|vLLMHttpServer)",
    "agent loop worker": r"^ray::(GroupWorker|AgentLoopWorker)",
    "reward worker": r"^ray::RewardLoopWorker",
    "transfer queue": r"^ray::(SimpleStorageUnit|TransferQueueController)",
    "ray gcs": r"/gcs_server ",
    "raylet": r"/raylet/raylet ",
}
"""The processes of a run, by their command lines. Beside these: `command`, the run itself, and `machine`, all."""


def write_recipe(
    directory: Path, *, cluster: dict[str, Any] | None = None, rows: tuple[str, ...] = (), micro_batch: int = 16
) -> Path:
    """The minimal recipe with a secret in it, other settings of its cluster, other rows, smaller micro-batches."""
    recipe = yaml.safe_load((MINIMAL / "recipe.yaml").read_text())
    for source in (recipe["student"], recipe["teacher"], recipe["data"]["source"]):
        source["script"] = str(MINIMAL / source["script"])
    recipe["verifier"] = f"{MINIMAL}/{recipe['verifier']}"
    recipe["stages"]["teacher_rl"]["verl"]["+trainer.tracking_api_key"] = PLANTED_IN_RECIPE
    for stage in recipe["stages"].values():
        verl = stage.get("verl", {})
        verl.update({key: micro_batch for key in verl if key.endswith("micro_batch_size_per_gpu") and verl[key] == 16})
    recipe["cluster"] |= cluster or {}
    recipe["rows"] = list(rows) or recipe["rows"]
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


class Run:
    """`verl-s2d run`, started when this is made. Its output is in `output`, whatever happens to it."""

    def __init__(self, recipe: Path, run_dir: Path):
        self.run_dir = run_dir
        self._log = recipe.parent / f"output-{time.monotonic_ns()}.txt"
        command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), "--run-dir", str(run_dir)]
        with self._log.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **PLANTED},
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, limit: float = 400) -> int:
        """The exit code.

        Raises:
            AssertionError: it hangs.
        """
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {limit:g} s:\n{self.output[-3000:]}") from None

    def until(self, what: str, true: Callable[[], object], limit: float = 300) -> Any:
        """Wait until something is true; what it is, or None when the run ended first.

        Raises:
            AssertionError: neither.
        """
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            running = self.running
            if found := true():
                return found
            if not running:
                return None
            time.sleep(0.02)
        raise AssertionError(f"{what}: not within {limit:g} s:\n{self.output[-3000:]}")

    def stages_begun(self) -> list[tuple[str, str]]:
        """(name, directory name) of the stages that this command has started, in order."""
        return re.findall(r"\[\d+/\d+\] (\S+) \(([\w-]+)", self.output)

    def wait_for(self, stage: str) -> Path:
        """The directory of a stage, once it has begun."""
        begun = self.until(f"{stage} begins", lambda: dict(self.stages_begun()).get(stage))
        assert begun, f"{stage} never began:\n{self.output[-3000:]}"
        return self.run_dir / "stages" / begun

    def at_work(self) -> str:
        """The stage in work, with its last step if it has any."""
        name, directory = self.stages_begun()[-1]
        step = max(read_metrics(self.run_dir / "stages" / directory), default=None)
        return name if step is None else f"{name}, step {step}"

    def kill(self, victim: str, limit: float = 60, number: int = signal.SIGKILL) -> bool:
        """Send a signal to the victim, waiting for it to appear; False when the run ended before it did."""
        if victim == "command":
            self.process.send_signal(number)
            return True
        if victim == "machine":
            self.process.kill()
            kill_marked(self.run_id)
            return True
        return self.until(f"a {victim} to kill", lambda: self._signal(victim, number), limit) is not None

    def _signal(self, victim: str, number: int) -> bool:
        for pid in marked_processes(self.run_id):
            try:
                process = psutil.Process(pid)
                if re.search(VICTIMS[victim], " ".join(process.cmdline()) + " "):
                    process.send_signal(number)
                    return True
            except psutil.Error:
                continue
        return False

    @property
    def run_id(self) -> str:
        return read_record(self.run_dir)["id"]

    def left_behind(self) -> list[int]:
        """Processes of the run that are still there."""
        return marked_processes(self.run_id)


@contextmanager
def running(recipe: Path, run_dir: Path) -> Iterator[Run]:
    """A run that is gone afterwards, whatever the test did."""
    run = Run(recipe, run_dir)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait(30)
        if (record := read_record(run_dir)) is not None:
            kill_marked(record["id"])


class Commands:
    """The same command, again and again."""

    def __init__(self, recipe: Path, run_dir: Path):
        self._recipe, self._run_dir = recipe, run_dir
        self._stack = ExitStack()
        self._newest: Run | None = None

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def running(self) -> Run:
        """The run that is there, or a new one if it has ended."""
        if self._newest is None or not self._newest.running:
            self._newest = self._stack.enter_context(running(self._recipe, self._run_dir))
        return self._newest


def finish(recipe: Path, run_dir: Path) -> str:
    """The same command, to its end; its output."""
    with running(recipe, run_dir) as run:
        assert run.wait(900) == 0, run.output[-3000:]
        return run.output


def written(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Finished stage -> what would change if its manifest were written again."""
    return {p.parent.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in run_dir.glob(f"stages/*/{MANIFEST}")}


def manifests(run_dir: Path) -> dict[str, dict]:
    """Stage's name -> its manifest."""
    found = (json.loads(path.read_text()) for path in run_dir.glob(f"stages/*/{MANIFEST}"))
    return {manifest["name"]: manifest for manifest in found}


def determined(run_dir: Path) -> dict[str, Any]:
    """Collect what follows from a run's recipe alone: the data and the models made by scripts to the
    bit, every label that was read, every update, and the rows of the table.

    Not so the weights after GRPO and OPD, and what follows from them: two undisturbed runs differ in those too, because
    verl batches rollouts as they come.
    """
    stages = {}
    for name, manifest in manifests(run_dir).items():
        stages[name] = {key: manifest["ledger"][key] for key in ("labels_read", "updates")}
        if manifest["kind"] in ("script", "slices"):
            stages[name]["outputs"] = outputs(manifest)
    rows = json.loads((run_dir / "report.json").read_text())["rows"]
    return {"stages": stages, "rows": [(row["name"], row["sets"].keys()) for row in rows]}


def outputs(manifest: dict) -> dict[str, str]:
    """Name -> digest of the files that a stage hands over."""
    return {output["name"]: output["sha256"] for output in manifest["outputs"]}


def nothing_half_written(run_dir: Path) -> None:
    """Every stage that has a manifest is whole."""
    damaged = [finding for finding in verify_run(run_dir).findings if finding.bad]
    assert damaged == []
