"""Texts of the golden files."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.cuda_double.recorded import Started, cuda_machine, placeholders, record
from tests.support.paths import ROOT
from tests.support.workflow.project import write_model
from verl_s2d.platforms.subprocess_query import Probe
from verl_s2d.workflow.hosts.local_cluster import CLUSTER_MARKER
from verl_s2d.workflow.hosts.process import MARKER
from verl_s2d.workflow.plan import Plan

GOLDEN = Path(__file__).with_name("golden")
RECIPES = sorted([*ROOT.glob("recipes/qwen3/*.yaml"), *ROOT.glob("recipes/llama/*.yaml")])
_CHANCE = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", MARKER, CLUSTER_MARKER)
"""Variables with another value in every run."""
_TRAINING = ("verl.trainer.main_ppo", "verl_s2d.stages.warmup.trainer")


def texts() -> dict[str, str]:
    """File name -> what it has to hold."""
    with tempfile.TemporaryDirectory() as temporary, cuda_machine():
        directory = Path(temporary)
        runs = {path.stem: record(path, directory / path.stem) for path in RECIPES}
        commands = [
            {"name": f"{name}/{process.name}", "argv": process.argv}
            for name, (_, processes) in runs.items()
            for process in processes
            if _module(process) in _TRAINING
        ]
        # Of a stage that samples: what all stages have in common.
        environment = {**os.environ, **_common(runs[RECIPES[0].stem][1]), "PYTHONPATH": str(ROOT)}
        del environment[MARKER]
        asked = ["-m", "tests.cuda_double.asked"]
        model = {"model": str(_loadable(directory / "model"))}
        with (
            Probe([*asked, "verl"], environment, commands) as verl,
            Probe([*asked, "sampler"], environment, model, what="the sampler") as sampler,
        ):
            machine = _machine(_answer(verl), _answer(sampler))
            devices = _answer(verl)["stages"]
    refused = {name: stage["refused"] for name, stage in devices.items() if stage["refused"] is not None}
    assert not refused, refused
    found = {"machine.txt": machine}
    for name, (plan, processes) in runs.items():
        device = {process.name: devices.get(f"{name}/{process.name}") for process in processes}
        found[f"{name}.txt"] = _recipe(plan, processes, device)
    return found


def _answer(probe: Probe) -> Any:
    answer, failure = probe.answer()
    assert answer is not None, failure
    return answer


def _loadable(directory: Path) -> Path:
    """A model whose configuration transformers can read."""
    write_model(directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    return directory


def _machine(verl: Mapping[str, Any], sampler: Mapping[str, Any]) -> str:
    method = sampler["environment"].get("VLLM_WORKER_MULTIPROC_METHOD", "fork, vLLM's default")
    return _sections(
        {
            "verl": verl["process"],
            "environment in which the sampler imports vLLM": sampler["environment"],
            "engine of the sampler": sampler["engine"],
            "start method of the sampler's engine": {"method": method},
        }
    )


def _recipe(plan: Plan, processes: list[Started], devices: Mapping[str, Mapping[str, str] | None]) -> str:
    common, sections = _common(processes), {}
    sections["environment of every stage"] = _chance(common)
    evaluations = [process for process in processes if process.name.startswith("evaluate-")]
    for process in processes:
        if process in evaluations[1:]:
            continue
        lines = _command(process)
        own = {name: value for name, value in process.env.items() if common.get(name) != value}
        lines |= {f"${name}": value for name, value in _chance(own).items()}
        if devices[process.name] is not None:
            lines["device that verl trains on"] = devices[process.name]["trainer.device"]
        sections[process.name] = lines
    _shorten(sections, "student-rl-all", "teacher-rl-all")
    text = _sections(sections)
    for machine, placeholder in placeholders(plan, common[MARKER]).items():
        text = text.replace(machine, placeholder)
    return text


def _common(processes: Iterable[Started]) -> dict[str, str]:
    """Variables with one value in all of them."""
    first, *others = (process.env.items() for process in processes)
    return dict(set(first).intersection(*others))


def _chance(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: "{set}" if name in _CHANCE else value for name, value in variables.items()}


def _module(process: Started) -> str:
    return process.argv[2] if process.argv[1] == "-m" else process.argv[1]


def _command(process: Started) -> dict[str, str]:
    """The module, and its arguments `key=value` or `--key`."""
    assert process.argv[0] == sys.executable
    rest = process.argv[3:] if process.argv[1] == "-m" else process.argv[2:]
    lines, words = {"module": _module(process)}, []
    for argument in rest:
        key, is_assignment, value = argument.partition("=")
        if is_assignment:
            lines[key] = "{port}" if key == "--port" else value
        else:
            words.append(argument)
    return lines | ({"words": " ".join(words)} if words else {})


def _shorten(sections: dict[str, dict[str, Any]], name: str, other: str) -> None:
    """Leave only what is different in section `name`."""
    mine, theirs = sections[name], sections[other]
    changed = {
        key: mine.get(key, "(not set)") for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)
    }
    sections[name] = {"everything else": f"as {other}", **changed}


def _sections(sections: Mapping[str, Mapping[str, Any]]) -> str:
    def line(key: str, value: Any) -> str:
        return f"{key}: {value if isinstance(value, str) else json.dumps(value)}"

    return "\n".join(
        "\n".join([f"[{name}]", *(line(key, lines[key]) for key in sorted(lines, key=_order)), ""])
        for name, lines in sections.items()
    )


def _order(key: str) -> tuple[bool, str]:
    return key != "module", key.lstrip("+$-")
