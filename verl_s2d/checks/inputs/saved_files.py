"""Refuse models that transformers reads but would not write with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from verl_s2d.checks.finding import Told
from verl_s2d.checks.inputs.model_pairs import KnownModels
from verl_s2d.errors import Faults, UserError
from verl_s2d.platforms.subprocess_query import Probe
from verl_s2d.sampling.generation_settings import unwritable
from verl_s2d.stages.shared.training_stage import TrainingStage
from verl_s2d.workflow.plan import Plan

_HARMLESS = ("_token_id", "_from_model_config", "transformers_version", "_commit_hash")
_known: dict[str, str | None] = {}
"""Refusals in this process by the file's text, because a plan is checked more than once."""


def check_saved_files(plan: Plan, known: KnownModels) -> Told:
    """Check the generation settings of every model, which verl writes with each of its checkpoints.

    Raises:
        UserError: transformers refuses to write them, as it does for a temperature without do_sample.
    """
    if not any(isinstance(node.stage, TrainingStage) for node in plan.order):
        return Told("nothing is trained")
    files = {role: _file(model.directory) for models, _ in known for role, model in models.items()}
    texts = {role: text for role, file in files.items() if _looks_risky(text := _text(file))}
    asked = {role: str(files[role].parent) for role, text in texts.items() if text not in _known}
    if asked:
        with Probe(["-m", "verl_s2d.sampling.generation_settings"], None, asked, what="import transformers") as probe:
            answer, failure = probe.answer()
        if answer is None:
            raise UserError(failure, key="transformers", remedy="Import transformers by hand to see what fails.")
        _known.update({texts[role]: reason for role, reason in answer.items()})
    faults = Faults()
    for role, text in texts.items():
        if _known[text] is not None:
            faults.add(unwritable(role, str(files[role]), _known[text]))
    faults.raise_found()
    return Told("generation settings can be written" if files else "looked at when their scripts have run")


def _file(directory: Path) -> Path:
    """Locate the file that decides a model's generation settings."""
    return file if (file := directory / "generation_config.json").is_file() else directory / "config.json"


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return "{}"


def _looks_risky(text: str) -> bool:
    """Tell whether the file has more than token ids, so that most models need no process."""
    try:
        keys = json.loads(text)
    except ValueError:
        return True
    if isinstance(keys, dict) and "vocab_size" in keys:
        # Of config.json transformers takes the sampling settings such that they are valid.
        return any(isinstance(i, int) and i < 0 for key, i in keys.items() if key.endswith("_token_id"))
    return not isinstance(keys, dict) or any(not key.endswith(_HARMLESS) for key in keys)
