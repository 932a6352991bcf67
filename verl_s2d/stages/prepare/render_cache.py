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
from verl_s2d.errors import UserError
from verl_s2d.workflow.subprocess_query import Probe

_PROCESS = "verl_s2d.sampling.render_process"
_TOKENIZER_FILES = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"}
"""Suffixes of the files that decide how a tokenizer renders; weights have others."""


@dataclass(frozen=True)
class Renderer:
    """A model whose chat template is used."""

    directory: Path
    trust_remote_code: bool


def tokenizer_digest(directory: Path) -> str:
    """Compute a sha256 over the small files of a model's directory."""
    sha = hashlib.sha256()
    for file in sorted(p for p in directory.iterdir() if p.suffix in _TOKENIZER_FILES and "index" not in p.name):
        sha.update(f"{file.name}\0{file_digest(file)}\n".encode())
    return sha.hexdigest()


def rendered(
    models: Mapping[str, Renderer], prompts: Sequence[Any], options: Mapping[str, Any], limit: int
) -> dict[str, Mapping[str, Any]]:
    """Render all prompts with the template of every model: name -> answer of verl_s2d.sampling.render_process.

    Args:
        options: of the chat template.
        limit: tokens of a prompt beyond which it is also measured without its longest message.

    Raises:
        UserError: the process gave no answer.
    """
    question = {"prompts": list(prompts), "options": dict(options), "limit": limit}
    code = file_digest(Path(find_spec(_PROCESS).origin))
    shared = _digest(json.dumps([question, code, version("transformers")], sort_keys=True, default=str))
    keys = {
        name: _digest(f"{shared} {tokenizer_digest(m.directory)} {m.trust_remote_code}") for name, m in models.items()
    }
    answers = {name: known for name, key in keys.items() if (known := _known(key)) is not None}
    missing = {name: m for name, m in models.items() if name not in answers}
    if missing:
        # Models with equal tokenizers have equal answers.
        asked = {
            keys[name]: {"path": str(m.directory), "trust_remote_code": m.trust_remote_code, "name": name}
            for name, m in missing.items()
        }
        environment, what = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}, "the rendering of the prompts"
        with Probe(["-m", _PROCESS], environment, {**question, "models": asked}, what=what, progress=True) as probe:
            found, failure = probe.answer()
        if found is None:
            raise UserError(failure, key="data", remedy="Look at the tokenizers and templates of the models.")
        for key, answer in found.items():
            _keep(key, answer)
        answers |= {name: found[keys[name]] for name in missing}
    return answers


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
    if "refused" not in answer:
        with contextlib.suppress(OSError):
            write_json(answer, _file(key))
