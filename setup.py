"""Build the package with the project's recipes inside, for `verl-s2d init quickstart` after `pip install`."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithRecipes(build_py):
    """Copy recipes/ into the built package. An editable install reads those of the clone."""

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "verl_s2d" / "recipes"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "recipes", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithRecipes})
