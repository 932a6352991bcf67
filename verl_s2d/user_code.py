"""Load a user's own function or class, named as file.py:name."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from verl_s2d.errors import UserError


def load(reference: str, *, what: str, key: str) -> Any:
    """Load the function or class that `file.py:name` names; a file is imported once a process.

    Args:
        what: what it is, for messages: verifier, signal.
        key: the setting that names it, for messages.

    Raises:
        UserError: the file is missing, cannot be imported or does not have it.
    """
    file, _, name = reference.rpartition(":")
    try:
        found = getattr(_module(Path(file).resolve(), what), name, None)
    except _NotLoaded as error:
        problem, remedy = error.args
        raise UserError(problem, key=key, value=reference, remedy=remedy) from error.__cause__
    if not callable(found):
        raise UserError(
            f"The file has no function or class {name!r}.", key=key, value=reference, remedy="Name one of the file's."
        )
    return found


class _NotLoaded(Exception):
    """Problem and remedy."""


@functools.cache
def _module(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise _NotLoaded(f"The {what}'s file does not exist.", "Check the path.")
    # Under a name of its own: two recipes may both have a verifier.py.
    name = f"verl_s2d_{what}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _NotLoaded(f"The {what}'s file is not Python.", "Give a .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _NotLoaded(
            f"The {what}'s file cannot be imported: {type(error).__name__}: {error}",
            "Import it by hand to see where it fails.",
        ) from error
    return module
