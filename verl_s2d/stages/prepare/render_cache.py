"""Render prompts with the chat templates of models, once for equal prompts, templates and options.

Answers are kept in $XDG_CACHE_HOME/verl-s2d/prompts (~/.cache) under a digest of everything that decides them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from verl_s2d.data.content import file_digest
from verl_s2d.data.files import write_json
from verl_s2d.data.model_files import hub_files
from verl_s2d.errors import UserError
from verl_s2d.platforms.subprocess_query import Probe

_PROCESS = "verl_s2d.sampling.render_process"
_TOKENIZER_FILES = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"}
"""Suffixes of the files that decide how a tokenizer renders; weights have others."""


@dataclass(frozen=True)
class Renderer:
    """A model whose chat template is used: a directory, or a hub id and its revision."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False

    def directory(self, role: str) -> Path:
        """Locate its small files, which are fetched from the hub if they are not here."""
        return path if (path := Path(self.model)).is_dir() else hub_files(self.model, self.revision, role)


def tokenizer_digest(directory: Path) -> str:
    """Compute a sha256 over the small files of a model's directory."""
    sha = hashlib.sha256()
    for file in sorted(p for p in directory.iterdir() if p.suffix in _TOKENIZER_FILES and "index" not in p.name):
        sha.update(f"{file.name}\0{file_digest(file)}\n".encode())
    return sha.hexdigest()


def rendered(
    models: Mapping[str, Renderer], prompts: Sequence[Any], options: Mapping[str, Any], date: str
) -> dict[str, Mapping[str, Any]]:
    """Render all prompts with the template of every model: name -> answer of verl_s2d.sampling.render_process.

    Args:
        options: of the chat template.
        date: that a template prints.

    Raises:
        UserError: the process gave no answer.
    """
    question = {"prompts": list(prompts), "options": dict(options), "date": date}
    shared = _identity(question)
    keys = {name: _digest(f"{shared} {_of_model(name, model)}") for name, model in models.items()}
    answers = {name: known for name, key in keys.items() if (known := _known(key)) is not None}
    missing = [name for name in models if name not in answers]
    if missing:
        # Models with equal tokenizers have equal answers.
        found = _ask({**question, "models": {keys[name]: _described(name, models[name]) for name in missing}})
        for key, answer in found.items():
            if "refused" not in answer:
                _keep(key, answer)
        answers |= {name: found[keys[name]] for name in missing}
    return {name: answers[name] for name in models}


def cut_prompts(
    models: Mapping[str, Renderer], prompts: Sequence[Any], options: Mapping[str, Any], date: str, limit: int
) -> list[Any]:
    """Shorten prompts to at most `limit` tokens with the template of every model; None for one that cannot be.

    Raises:
        UserError: the process gave no answer.
    """
    question = {"prompts": list(prompts), "options": dict(options), "date": date, "cut": limit}
    key = _digest(" ".join([_identity(question), *(_of_model(name, model) for name, model in models.items())]))
    answer = _known(key)
    if answer is None:
        answer = _ask({**question, "models": {name: _described(name, model) for name, model in models.items()}})
        _keep(key, answer)
    return answer["cut"]


def _ask(question: Mapping[str, Any]) -> dict[str, Any]:
    environment, what = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}, "the rendering of the prompts"
    with Probe(["-m", _PROCESS], environment, question, what=what, progress=True) as probe:
        found, failure = probe.answer()
    if found is None:
        raise UserError(failure, key="data", remedy="Look at the tokenizers and templates of the models.")
    return found


def _described(name: str, model: Renderer) -> dict[str, Any]:
    return {"name": name, "path": str(model.directory(name)), "trust_remote_code": model.trust_remote_code}


def _identity(question: Mapping[str, Any]) -> str:
    """Name the question, the code that answers it and the library that renders."""
    code = file_digest(Path(find_spec(_PROCESS).origin))
    return json.dumps([question, code, version("transformers")], sort_keys=True, default=str)


def _of_model(name: str, model: Renderer) -> str:
    return f"{tokenizer_digest(model.directory(name))} {model.trust_remote_code}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file(key: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "verl-s2d" / "prompts" / f"{key}.json"


def _known(key: str) -> Mapping[str, Any] | None:
    try:
        return json.loads(_file(key).read_text())
    except (OSError, ValueError):
        return None


def _keep(key: str, answer: Mapping[str, Any]) -> None:
    # A home that cannot be written to costs time, not correctness.
    with contextlib.suppress(OSError):
        write_json(answer, _file(key))
