"""Identify the models, data files and scripts that a graph reads from outside: by content, not by location."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from verl_s2d.data.content import directory_digest, file_digest
from verl_s2d.data.model_files import cached_snapshot
from verl_s2d.errors import UserError
from verl_s2d.workflow.store.saved_weights import export_problem

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class External:
    """A model or file that the graph did not build.

    Attributes:
        location: absolute path, or hub id.
        identity: enters digests; the same content elsewhere has the same identity.
        is_hub: the location is a hub id.
        revision: revision of a hub id that the hub's cache does not have whole.
        key: the recipe key that names it, for messages.
        trust_remote_code: code that comes with the model may run.
    """

    location: str
    identity: str
    is_hub: bool = False
    revision: str | None = None
    key: str = ""
    trust_remote_code: bool = False


def files_external(paths: Iterable[Path], key: str, value: str) -> External:
    """Identify a file, or together with the files it depends on (a script and what it uses); its location is the first.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    paths = list(paths)
    digests = []
    for path in paths:
        try:
            digests.append(file_digest(path))
        except OSError as error:
            raise UserError(
                f"The file cannot be read: {path}: {error.strerror or error}.",
                key=key,
                value=value,
                remedy="Check the path.",
            ) from error
    identity = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return External(str(paths[0]), f"sha256:{identity}")


def model_external(
    model: str, revision: str | None, directory: Path, key: str, *, trust_remote_code: bool = False
) -> External:
    """Identify a model, as `_model_external`; the same model with its own code enabled has another identity."""
    external = _model_external(model, revision, directory, key)
    if not trust_remote_code:
        return external
    return replace(external, identity=f"{external.identity}+remote-code", trust_remote_code=trust_remote_code)


def _model_external(model: str, revision: str | None, directory: Path, key: str) -> External:
    """Identify a local model directory by content, or a hub id by name and revision.

    Args:
        model: as written in the recipe; a relative directory counts from `directory`.
        revision: loaded as a directory of the hub's cache, because verl loads the default branch of a hub id.
        key: recipe key, for messages.

    Raises:
        UserError: a local model that does not exist or cannot be read, or text that is neither path nor hub id.
    """
    path = directory / os.path.expanduser(model)
    if path.exists():
        if not (path / "config.json").is_file():
            raise UserError(
                "The directory is not a model: it has no config.json.",
                key=key,
                value=model,
                remedy="Point at a Hugging Face model directory.",
            )
        if revision is not None:
            raise UserError(
                "A local model has no revision.", key=f"{key}.revision", value=revision, remedy="Remove it."
            )
        try:
            return External(str(path.resolve()), f"model:{directory_digest(path)}", key=key)
        except OSError as error:
            problem = f"The model cannot be read: {error}."
            raise UserError(problem, key=key, value=model, remedy="Check its permissions.") from error
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise UserError(
            "There is no such model directory.",
            key=key,
            value=model,
            remedy="Check the path, or give a hub id like organisation/name.",
        )
    identity = f"hub:{model}@{revision or 'main'}"
    snapshot = revision and cached_snapshot(model, revision)
    if snapshot and export_problem(snapshot) is None:
        return External(str(snapshot), identity, key=key)
    return External(model, identity, is_hub=True, revision=revision, key=key)
