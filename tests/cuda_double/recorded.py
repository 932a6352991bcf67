"""Run a recipe with a launcher that records every process instead of starting one."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.support.workflow.project import NO_STAGES, Ended, SimulatedStages, write_model, write_problems
from tests.support.workflow.runs import Lines
from verl_s2d.platforms.temporary_files import compile_cache, directory_for_sockets
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.stages.prepare.stage import Slices
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.runner import run_plan

FAKE_TOOLS = Path(__file__).with_name("bin")
CPUS = 64
"""GPUs of the simulated machine."""
ROWS = ["full-bridge", "direct-grpo"]
"""Between them they have every kind of stage."""
_KEPT = ("PATH", "HOME", "LANG", "LC_", "TMPDIR", "LD_LIBRARY_PATH", "OPENBLAS_")


@dataclass(frozen=True)
class Started:
    """One process: `name` of the stage, "ray head" for the cluster; env holds what the workflow added to its own."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]


class Recorder(SimulatedStages):
    """Keeps what is started, and leaves behind what the stage would."""

    def __init__(self, plan: Plan, model: Path):
        super().__init__()
        self.processes: list[Started] = []
        self._nodes, self._model = {node.label: node for node in plan.order}, model
        self._sets = plan.recipe.data.expected.keys() - {"train"} or {"held"}
        self._head: socket.socket | None = None

    def start(self, argv, env, cwd, log):
        added = {name: value for name, value in env.items() if os.environ.get(name) != value}
        if "ray.scripts.scripts" in argv:
            self.processes.append(Started("ray head", list(argv), added))
            return self._listen(argv, log)
        if argv[2] in NO_STAGES:
            return Ended(NO_STAGES[argv[2]])
        node = self._nodes[Path(cwd).name]
        self.processes.append(Started(node.name, list(argv), added))
        if node.kind == "script":
            self._prepare(node, Path(cwd))
            return Ended(0)
        if node.kind == "slices":
            for name in Slices.required_files:
                (Path(cwd) / name).write_text("{}")
            return Ended(0)
        return super().start([self._at_hand(argument) for argument in argv], env, cwd, log)

    def _prepare(self, node, directory: Path) -> None:
        if node.settings["makes"] == "model":
            write_model(directory)
        else:
            for name in ("train", *self._sets):
                write_problems(directory / f"{name}.parquet", range(4))

    def _at_hand(self, argument: str) -> str:
        """A trained model's export is a copy of its model, which may be on the hub."""
        key, is_assignment, value = argument.partition("=")
        local = is_assignment and key.endswith("model.path") and not Path(value).exists()
        return f"{key}={self._model}" if local else argument

    def _listen(self, argv: Sequence[str], log: Path):
        port = next(int(a.removeprefix("--port=")) for a in argv if a.startswith("--port="))
        self._head = socket.create_server(("127.0.0.1", port))
        log.write_text("Ray runtime started\n")
        return Head()

    def close(self):
        if self._head is not None:
            self._head.close()


class Head(Ended):
    """Handle of a Ray head that runs until it is stopped."""

    def __init__(self):
        super().__init__(0)
        self._runs = True

    def poll(self):
        return None if self._runs else self._code

    def terminate(self):
        self._runs = False

    kill = terminate


@contextlib.contextmanager
def cuda_machine() -> Iterator[None]:
    """Show the workflow a machine with nvidia-smi, many cores and few variables.

    A variable that is set already would not show among those that the workflow adds.
    """
    clean = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
    clean["PATH"] = os.pathsep.join([str(FAKE_TOOLS), clean["PATH"]])
    with (
        patch.dict(os.environ, clean, clear=True),
        patch("os.cpu_count", lambda: CPUS),
        patch("os.fsync", lambda descriptor: None),
        # No process is started, so none is left.
        patch("verl_s2d.workflow.runner.kill_marked", lambda *_: 0),
        patch("verl_s2d.workflow.hosts.local_cluster.kill_marked", lambda *_: 0),
        patch("verl_s2d.workflow.hosts.local_cluster.marked_processes", lambda *_: []),
    ):
        yield


def record(path: Path, directory: Path) -> tuple[Plan, list[Started]]:
    """Plan of a recipe and all processes of its run, in order. Call it inside `cuda_machine`."""
    plan = make_plan(load_recipe(path), run_dir=directory / "run", rows=ROWS)
    recorder = Recorder(plan, write_model(directory / "model"))
    failures = run_plan(plan, Lines(), launcher=recorder)
    assert not failures, failures
    return plan, recorder.processes


def placeholders(plan: Plan, run_id: str) -> dict[str, str]:
    """Text of this machine -> what stands for it in a golden file, longest first."""
    stages = {str(plan.context.directory(node)): f"{{{node.name}}}" for node in plan.order}
    places = {
        str(plan.context.run_dir): "{run}",
        str(plan.recipe.directory): "{recipe}",
        sys.executable: "python",
        f"{directory_for_sockets()}/s2d-{run_id[:8]}": "{ray}",
        f"{directory_for_sockets()}/s2d-{run_id[:8]}t": "{temporary}",
        compile_cache(): "{compiled}",
    }
    return dict(sorted((stages | places).items(), key=lambda item: -len(item[0])))
