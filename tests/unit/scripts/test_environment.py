"""The script that makes .venv, with Python, pip and uv replaced by scripts that write down how they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CPU, CUDA = "torch-2.13.0+cpu", "torch-2.13.0-cuda"

INTERPRETER = """
case "$1 $2" in
  "-c import ensurepip"*) exit "$UNFIT" ;;
  "-c import os"*) echo "$0" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$BIN/in-venv" "$3/bin/python" ;;
esac
"""
# The script reads torch's version.py with the real Python; what pip would have written it writes here.
IN_VENV = """
site="$(dirname "$(dirname "$0")")/site"
case "$1 $2" in
  "-m pip") ;;
  "- ") PYTHONPATH="$site" exec "$REAL" -S - ;;
  "--version ") echo "Python 3.11.9" && exit ;;
  *) exit 0 ;;
esac
shift 2
echo "$*" >>"$LOG"
case "$*" in
  *torch==2.13.0+cpu*) wanted=torch-2.13.0+cpu version="'2.13.0+cpu'" cuda=None ;;
  *torch==2.13.0*) wanted=torch-2.13.0-cuda version="'2.13.0'" cuda="'13.0'" ;;
  *) exit 0 ;;
esac
case " $INDEX " in
  *" $wanted "*) ;;
  *) echo "ERROR: No matching distribution found for $wanted" >&2 && exit 1 ;;
esac
mkdir -p "$site/torch" && touch "$site/torch/__init__.py"
printf '__version__ = %s\\ncuda: Optional[str] = %s\\n' "$version" "$cuda" >"$site/torch/version.py"
"""
UV = 'echo "uv $*" >>"$LOG"; for last; do :; done; mkdir -p "$last/bin" && cp "$BIN/in-venv" "$last/bin/python"'


@pytest.fixture
def make(tmp_path):
    """Source the script in a repository of its own; returns (exit code, what it said, pip's and uv's calls)."""
    (tmp_path / ".ci").mkdir()
    for name in ("environment.sh", "requirements-cpu.txt"):
        shutil.copy(ROOT / ".ci" / name, tmp_path / ".ci")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()

    def program(name: str, body: str) -> None:
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)

    for name in ("python3", "python3.11", "python3.12"):
        program(name, INTERPRETER)
    program("in-venv", IN_VENV)

    def source(*index: str, fits: bool = True, uv: bool = False) -> tuple[int, str, list[str]]:
        if uv:
            program("uv", UV)
        log = tmp_path / "log"
        log.write_text("")
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "BIN": str(programs), "LOG": str(log)}
        environment |= {"REAL": sys.executable, "INDEX": " ".join(index), "UNFIT": str(int(not fits))}
        done = subprocess.run(
            ["bash", "-c", ". .ci/environment.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        calls = [line.rpartition("--no-input ")[2] for line in log.read_text().splitlines()]
        return done.returncode, done.stdout + done.stderr, [call for call in calls if "torch" in call or "uv" in call]

    return source


def test_the_cpu_build_is_taken_and_no_other_one_is_asked_for(make):
    code, said, calls = make(CPU, CUDA)
    assert (code, calls) == (0, ["install --no-deps torch==2.13.0+cpu"])
    assert "torch 2.13.0 (cpu build)" in said and "PIP_EXTRA_INDEX_URL" not in said
    assert make(CPU)[2] == [], "the second time there is nothing to do"


def test_where_no_index_has_it_the_cuda_build_is_taken_with_its_libraries(make, tmp_path):
    code, said, calls = make(CUDA)
    assert (code, calls) == (0, ["install --no-deps torch==2.13.0+cpu", "install torch==2.13.0"])
    assert "torch 2.13.0 (CUDA 13.0 build)" in said and "PIP_EXTRA_INDEX_URL" in said and "ERROR" not in said
    (tmp_path / "pyproject.toml").write_text("changed")
    assert make(CUDA)[::2] == (0, []), "it is brought up to date, with the torch that it has"


def test_where_pip_has_neither_nothing_is_left_and_its_message_is_shown(make, tmp_path):
    code, said, calls = make()
    assert code == 1 and len(calls) == 2 * 3, "with each interpreter"
    assert "No matching distribution found for torch-2.13.0-cuda" in said and "error: no torch 2.13.0." in said
    assert not (tmp_path / ".venv").exists()


def test_uv_makes_it_where_no_python_fits(make):
    code, said, calls = make(CPU, fits=False, uv=True)
    assert code == 0, said
    assert calls == ["uv venv --quiet --seed --python >=3.11,<3.13 .venv", "install --no-deps torch==2.13.0+cpu"]


def test_without_python_and_uv_it_says_what_it_needs(make):
    if any((Path(place) / "uv").exists() for place in ("/usr/bin", "/bin")):
        pytest.skip("this machine has uv in /usr/bin")
    code, said, calls = make(CPU, fits=False)
    assert code == 1 and calls == [] and "needs Python 3.11 or 3.12" in said and "or uv" in said


def test_the_script_is_the_one_of_both_commands_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for command in ("recipes/quickstart/run.sh", "tests/run.sh"):
        assert f"bash {command}" in readme and ". .ci/environment.sh" in (ROOT / command).read_text()
        assert os.access(ROOT / command, os.R_OK)
