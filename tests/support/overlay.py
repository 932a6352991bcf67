"""A patched copy of installed packages that wins over the installed ones in a subprocess."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support.paths import ROOT

INSTALLED = Path(sysconfig.get_path("purelib"))
PATCHES = ROOT / "patches"


def patched_files(patch: Path) -> list[str]:
    """Paths that a patch changes, relative to site-packages."""
    return re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(), re.M)


def make_overlay(directory: Path, patches: list[Path]) -> Path:
    """Put packages into `directory` in which everything is a link to the installed file but what the patches change.

    Raises:
        subprocess.CalledProcessError: a patch does not apply.
    """
    for file in sorted({file for patch in patches for file in patched_files(patch)}):
        _copy(directory, Path(file))
    for patch in patches:
        # Without the ceiling, git would take the directory for a part of a repository that it may lie in.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(directory.parent)}
        subprocess.run(["git", "apply", str(patch)], cwd=directory, env=environment, check=True)
    return directory


def _copy(directory: Path, file: Path) -> None:
    for parent in reversed(file.parents[:-1]):
        _open(directory, parent)
    (directory / file).unlink()
    (directory / file).write_bytes((INSTALLED / file).read_bytes())


def _open(directory: Path, package: Path) -> None:
    """Turn the link to a package into a directory of links."""
    target = directory / package
    if target.is_dir() and not target.is_symlink():
        return
    target.unlink(missing_ok=True)
    target.mkdir(parents=True)
    for entry in (INSTALLED / package).iterdir():
        if entry.name != "__pycache__":
            (target / entry.name).symlink_to(entry)


def facts(code: str, overlay: Path | None = None, **environment: str) -> dict:
    """Run `code` in a fresh process on verl's platform `cpu` and return the dict that it leaves in `facts`."""
    path = [str(p) for p in (overlay, PATCHES.parent) if p]
    variables = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "VLLM_"))},
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "VERL_PLATFORM": "cpu",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"facts = {{}}\n{code}\nimport json; print('FACTS ' + json.dumps(facts))"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("FACTS "))
    return json.loads(line[6:])
