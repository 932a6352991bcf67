"""Verifiers by name, or by file and function."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError

Score = float | Mapping[str, Any]
Verifier = Callable[..., Score]

VERIFIERS = {"reasoning_gym": "verl_s2d.rewards.reasoning_gym:compute_score"}
"""Name -> module:function; imported on first use, because a verifier may need a library that others do not."""


@functools.cache
def resolve(name: str) -> Verifier:
    """The verifier called `name`, or the function in `file.py:function`.

    Raises:
        UserError: unknown name, or a file or function that cannot be loaded.
    """
    if name in VERIFIERS:
        module, _, function = VERIFIERS[name].partition(":")
        try:
            return getattr(importlib.import_module(module), function)
        except ImportError as error:
            raise UserError(
                f"The verifier needs {error.name}, which is not installed.",
                key="verifier",
                value=name,
                remedy=f"Install it: pip install {str(error.name).replace('_', '-')}.",
            ) from error
    file, colon, function = name.rpartition(":")
    if not colon:
        raise UserError(
            "Unknown verifier.",
            key="verifier",
            value=name,
            remedy=f"Use one of {', '.join(sorted(VERIFIERS))}, or file.py:function.",
        )
    return _from_file(Path(file), function, name)


def _from_file(path: Path, function: str, name: str) -> Verifier:
    if not path.is_file():
        raise UserError("The verifier's file does not exist.", key="verifier", value=name, remedy="Check the path.")
    # Under a name of its own: two recipes may both have a verifier.py.
    module_name = f"verl_s2d_verifier_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError("The verifier's file is not Python.", key="verifier", value=name, remedy="Give a .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UserError(
            f"The verifier's file cannot be imported: {type(error).__name__}: {error}",
            key="verifier",
            value=name,
            remedy="Import it by hand to see where it fails.",
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(
            f"The file has no function {function!r}.", key="verifier", value=name, remedy="Name a function of the file."
        )
    return _blocking(found) if inspect.iscoroutinefunction(found) else found


def _blocking(verifier: Callable[..., Any]) -> Verifier:
    """verl lets reward functions be coroutines. Our callers are plain code, or verl's threads without an event loop."""

    @functools.wraps(verifier)
    def call(*args: Any, **kwargs: Any) -> Score:
        return asyncio.run(verifier(*args, **kwargs))

    return call
