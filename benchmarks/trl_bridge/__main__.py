"""Run the stages of the row half-split with this project and with TRL's trainers, and print them side by side.

    python -m benchmarks.trl_bridge run=DIR python=TRL_ENV/bin/python       # both sides after each other, for the times
    python -m benchmarks.trl_bridge run=DIR python=... sides=trl            # beside a finished run, which is only read
    python -m benchmarks.trl_bridge run=DIR python=... steps=2              # both, two updates a stage: a smoke test

TRL's environment is that of requirements.txt. Both sides start from the same models and problems, which our run makes
before the timed part. Settings are the recipe's. Wall times compare on a machine that does nothing else only: the load
average is printed. OUT, by default DIR-trl, gets the models of TRL's side and figures.json with both sides' figures.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.trl_bridge.our_stages import ROW, RowStages
from benchmarks.trl_bridge.processor_clock import ProcessorClock
from benchmarks.trl_bridge.recipe_settings import STAGES, bridge_plan
from benchmarks.trl_bridge.stage_figures import COMMAND, StageFigures, side_by_side
from verl_s2d import arguments
from verl_s2d.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
_GIVEN = ("cold-student", "teacher")
_ROWS = (ROW, "bridge-only-1h", "teacher-rl-1h")
"""The second and the third evaluate the models after 2b and after 1, as the TRL side does."""


@dataclass(frozen=True)
class Options:
    """Command line of this script."""

    run: str
    python: str
    """Interpreter of the environment with TRL."""
    recipe: str = "recipes/quickstart/quickstart.yaml"
    sides: str = "ours,trl"
    steps: int | None = None
    """Updates of each training stage; by default the recipe's."""
    seed: int = 0
    out: str | None = None


def main(options: Options) -> None:
    run_dir = Path(options.run)
    out = Path(options.out or f"{run_dir}-trl")
    out.mkdir(parents=True, exist_ok=True)
    overrides = [f"stages.{stage}.steps={options.steps}" for stage in STAGES if options.steps]
    recipe = ROOT / options.recipe
    commands: dict[str, StageFigures] = {}
    loads: dict[str, str] = {}
    with ProcessorClock() as clock:
        if "ours" in options.sides.split(","):
            _verl_s2d(recipe, overrides, _GIVEN, options)
            with _timed("ours", commands, loads):
                _verl_s2d(recipe, overrides, _ROWS, options)
        row = RowStages(run_dir)
        plan = bridge_plan(load_recipe(recipe, overrides), row.inputs(), row.seed())
        plan.write(out / "plan.json")
        with _timed("TRL", commands, loads):
            _trl(options.python, out)
    sides = {"ours": row.figures(), "TRL": _trl_figures(out)}
    for name, side in sides.items():
        whole = [commands[name]] if name in commands else []
        sides[name] = [replace(one, processor=clock.seconds(one.spans)) for one in [*side, *whole]]
    told = {name: [dataclasses.asdict(one) for one in side] for name, side in sides.items()}
    (out / "figures.json").write_text(json.dumps({"load": loads, "cores": os.cpu_count(), **told}, indent=1))
    print("load average before and after: " + "; ".join(f"{name} {load}" for name, load in loads.items()))
    print(side_by_side(sides))


@contextmanager
def _timed(side: str, commands: dict[str, StageFigures], loads: dict[str, str]) -> Iterator[None]:
    """Time a side's whole command, and note the load average of a minute at its ends."""
    began, load = time.time(), os.getloadavg()[0]
    yield
    commands[side] = StageFigures(COMMAND, ((began, time.time()),), updates=0, tokens=0)
    loads[side] = f"{load:.1f}, {os.getloadavg()[0]:.1f}"


def _verl_s2d(recipe: Path, overrides: list[str], rows: tuple[str, ...], options: Options) -> None:
    quoted = ",".join(f'"{row}"' for row in rows)
    command = [sys.executable, "-m", "verl_s2d.cli", "run", str(recipe), *overrides, f"rows=[{quoted}]"]
    subprocess.run([*command, "--seeds", str(options.seed), "--run-dir", options.run], check=True, cwd=ROOT)


def _trl(python: str, out: Path) -> None:
    module = "benchmarks.trl_bridge.trl_stages"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", module, str((out / "plan.json").resolve()), str(out.resolve())]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def _trl_figures(out: Path) -> list[StageFigures]:
    samples = json.loads((out / "plan.json").read_text())["evaluation"]["samples"]
    return [
        StageFigures(
            stage=one["stage"],
            spans=((one["began"], one["ended"]),),
            updates=one["updates"],
            tokens=one["tokens"],
            shares={problem: right / samples for problem, right in one["correct"].items()},
        )
        for one in json.loads((out / "stages.json").read_text())
    ]


if __name__ == "__main__":
    arguments.run(main, Options)
