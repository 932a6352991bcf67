"""Measure the workflow's own time: a run minus its stages' seconds, and a second run of the finished recipe.

    python benchmarks/workflow.py RECIPE NEW_RUN_DIRECTORY [options of verl-s2d run]

Own time is wall time minus the stages' processes: planning, checks, the Ray head, hand-off, manifests, the report.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path


def timed_run(arguments: list[str]) -> float:
    """Wall seconds of one `verl-s2d run`; its output is shown."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "verl_s2d.cli", "run", *arguments], check=True)
    return time.monotonic() - began


def main(recipe: str, run_dir: str, *options: str) -> None:
    if Path(run_dir).exists():
        sys.exit(f"{run_dir} exists: stages cached in it would distort the figures; give a new directory")
    arguments = [recipe, "--run-dir", run_dir, *options]
    first = timed_run(arguments)
    manifests = [json.loads(path.read_text()) for path in Path(run_dir).glob("stages/*/manifest.json")]
    stages = sum(manifest["seconds"] for manifest in manifests)
    second = timed_run(arguments)
    print(f"stages {len(manifests)}, run {first:.1f} s, in stages {stages:.1f} s")
    own = first - stages
    print(f"own time {own:.1f} s = {100 * own / first:.2f} % of the run; second run {second:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
