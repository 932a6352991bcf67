"""Temporary files of processes end with them: those of a run, of a killed run, of a question to a process."""

from __future__ import annotations

import os
import tempfile
from datetime import datetime
from pathlib import Path

import pytest
from ray._common.utils import get_ray_address_file
from ray._private.utils import validate_socket_filepath
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from tests.support.workflow.project import SimulatedStages
from tests.support.workflow.runs import build, project
from verl_s2d.errors import UserError
from verl_s2d.platforms import temporary_files
from verl_s2d.platforms.subprocess_query import Probe
from verl_s2d.platforms.temporary_files import compile_cache, directory_for_sockets, temporary_files_in
from verl_s2d.workflow.store.run_directory import read_record

LEAVES = "import tempfile; print('S2D \"' + tempfile.mkdtemp() + '\"')"


class LeavingFiles(SimulatedStages):
    """Stages that leave a file among the temporary ones, as verl leaves a lock for each checkpoint."""

    def __init__(self):
        super().__init__()
        self.places: set[str] = set()

    def start(self, argv, env, cwd, log):
        self.places.add(env["TMPDIR"])
        Path(env["TMPDIR"], f"{Path(cwd).name}.lock").touch()
        return super().start(argv, env, cwd, log)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """The system's directory for temporary files, empty."""
    directory = tmp_path / "system"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setattr(temporary_files, "_BELOW", "")  # pytest's directories are long, and no socket is made here
    return directory


def test_sockets_fit_into_the_paths_that_the_kernel_takes(tmp_path, monkeypatch):
    """The system's directory is taken where it is short enough for the longest of Ray's sockets."""
    ray = datetime(2026, 1, 1).strftime(f"session_%Y-%m-%d_%H-%M-%S_%f_{4_194_304}/sockets/plasma_store")
    for length in (10, 25, 26, 60, 200):
        monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (length - 1))
        place = directory_for_sockets()
        validate_socket_filepath(str(place / f"s2d-{'0' * 8}t" / "ray" / ray))
        assert str(place) == (tempfile.tempdir if length <= 25 else "/tmp")


def test_a_long_directory_is_refused_where_there_is_no_other(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/local/scratch/slurm-12345678")
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/tmp")
    with pytest.raises(UserError, match="/tmp cannot be written") as caught:
        Probe(["-c", "pass"], None)
    assert "TMPDIR" in str(caught.value) and "at most 25 characters" in str(caught.value)


def test_a_run_leaves_none(tmp_path, system, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    plan, launcher = project(tmp_path, rows=["cold-student", "direct-grpo"]), LeavingFiles()
    assert build(plan, launcher) == [] and launcher.started
    (place,) = launcher.places
    assert Path(place).parent == system and not any(system.iterdir())


def test_what_a_killed_run_has_left_ends_with_the_next(tmp_path, system, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    build(project(tmp_path, rows=["cold-student"]), LeavingFiles())
    run_id = read_record(project(tmp_path, rows=["cold-student"]).context.run_dir)["id"]
    remains = system / f"s2d-{run_id[:8]}t"
    (remains / "s2d-warm-x").mkdir(parents=True)
    other = system / "s2d-01234567t"
    other.mkdir()
    launcher = LeavingFiles()
    build(project(tmp_path, rows=["direct-grpo"]), launcher)
    assert launcher.places == {str(remains)} and list(system.iterdir()) == [other]


def test_a_question_leaves_none_also_when_nobody_waits_for_the_answer(system):
    with Probe(["-c", LEAVES], None) as probe:
        answer, failure = probe.answer()
        assert not failure and Path(answer).is_dir() and Path(answer).parent.parent == system
    assert not any(system.iterdir())
    with Probe(["-c", "import time; time.sleep(600)"], None):
        assert any(system.iterdir())
    assert not any(system.iterdir())


@pytest.mark.parametrize("own", [{}, {"TMPDIR": "/scratch"}, {"TMPDIR": "/scratch", "RAY_TMPDIR": "/ray"}])
def test_ray_finds_a_user_s_cluster_where_it_would_look_by_itself(monkeypatch, own):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    before = get_ray_address_file(None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    for name, value in temporary_files_in("/elsewhere").items():
        monkeypatch.setenv(name, value)
    assert get_ray_address_file(None) == before and os.environ["TMPDIR"] == "/elsewhere"


@pytest.mark.parametrize("user", ["anna", "DOMAIN\\anna: x"])
def test_what_torch_compiles_stays_where_torch_puts_it(monkeypatch, user):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("getpass.getuser", lambda: user)
    assert compile_cache() == default_cache_dir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert compile_cache() == "/elsewhere"


def test_a_container_s_user_without_a_name_has_a_compile_cache(monkeypatch):
    def unknown():
        raise KeyError(12345)

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr("getpass.getuser", unknown)
    assert compile_cache() == default_cache_dir()
