"""The commands of docs/trainer-keys.md in a shell, as a user types them, on a machine without an accelerator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents.commands import documented_commands, filled_in
from tests.support.paths import ROOT
from tests.support.tiny import write_model, write_problems
from verl_s2d.stages.before_start import _OF_A_RUN
from verl_s2d.workflow.hosts.process import MARKER

pytestmark = pytest.mark.e2e


def shell(command: str, directory: Path, limit: float, **more: str) -> tuple[int, str]:
    """Run a command in bash without this session's Ray; returns (exit code, output). It has ended on return."""
    mine = ("RAY_ADDRESS", "VERL_PLATFORM", MARKER)
    environment = {name: value for name, value in os.environ.items() if name not in mine} | more
    # Ray gives its own processes half a minute, which a busy machine exceeds.
    environment["RAY_raylet_start_wait_time_s"] = "600"
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = directory / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=directory, env=environment, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
    return code, log.read_text()


def test_the_marker_of_a_run_is_the_kernels():
    assert _OF_A_RUN == MARKER


def test_three_keys_on_a_machine_without_an_accelerator_are_refused_and_do_not_hang(tmp_path):
    (command,) = [text for text in documented_commands("trainer-keys.md") if "<your overrides>" in text]
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    code, said = shell(filled_in(command, checkpoint=tmp_path / "teacher", your=""), tmp_path, 600, **hidden)
    assert code == 1
    assert "waited for without a limit" in said and "verl-s2d overrides cpu" in said
    assert "ray init kwargs" not in said, "Ray was started"


@pytest.mark.slow
def test_the_whole_command_for_a_cpu_trains(tmp_path):
    (command,) = [text for text in documented_commands("trainer-keys.md") if "overrides cpu --shell" in text]
    student, teacher = write_model(tmp_path / "student"), write_model(tmp_path / "teacher", seed=1)
    prompts = write_problems(tmp_path / "prompts.parquet", 32)
    code, said = shell(filled_in(command, student=student, teacher=teacher, prompts=prompts), tmp_path, 1800)
    assert code == 0, said[-4000:]
    assert "s2d/reverse_kl:" in said and "step:2 " in said
