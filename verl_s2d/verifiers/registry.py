"""Find verifiers by name, or by file and function, with options."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from verl_s2d import user_code
from verl_s2d.errors import UserError

Score = float | Mapping[str, Any]
Verifier = Callable[..., Score]

VERIFIERS = {
    "math": "verl_s2d.verifiers.math.mathematics:compute_score",
    "reasoning_gym": "verl_s2d.verifiers.reasoning_gym:compute_score",
}
"""Name -> module:function; imported on first use, because a verifier may need a library of its own.

A module may define `check(**options)`, which raises UserError unless the verifier works on this machine, and
`check_answer(ground_truth, extra_info, **options)`, which raises UserError unless the verifier can use that answer.
"""


def resolve(verifier: str | Mapping[str, Any]) -> Verifier:
    """Resolve a verifier's name, `file.py:function`, or either with options: {name: math, form: boxed}.

    The mapping may also be JSON text, for command lines. Options become keyword arguments of calls.

    Raises:
        UserError: the name is unknown, a file or function does not load, or options have no name.
    """
    name, options = _name_and_options(verifier)
    return functools.partial(_by_name(name), **options) if options else _by_name(name)


def check_answer(verifier: str | Mapping[str, Any], ground_truth: Any, extra_info: Mapping[str, Any]) -> None:
    """Raise UserError for an answer that a built-in verifier cannot use."""
    name, options = _name_and_options(verifier)
    resolve(verifier)
    module = sys.modules[VERIFIERS[name].partition(":")[0]] if name in VERIFIERS else None
    if hasattr(module, "check_answer"):
        module.check_answer(ground_truth, extra_info, **options)


def check(verifier: str | Mapping[str, Any], problem: Mapping[str, Any] | None = None, response: str = "") -> None:
    """Check a verifier before anything expensive starts.

    Args:
        problem: data_source, ground_truth and extra_info of a real problem, for which the verifier scores `response`.

    Raises:
        UserError: the verifier does not load, fails its own check, raises, or returns no score.
    """
    score = resolve(verifier)
    name, options = _name_and_options(verifier)
    module = sys.modules[VERIFIERS[name].partition(":")[0]] if name in VERIFIERS else None
    if hasattr(module, "check"):
        module.check(**options)
    if problem is None:
        return
    try:
        result = score(solution_str=response, **problem)
        float(result["score"] if isinstance(result, Mapping) else result)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The verifier fails on the response {response!r}: {type(error).__name__}: {error}",
            key="verifier",
            value=name,
            remedy="Return a number, or a mapping with `score`, for any response; 0 when it has no answer.",
        ) from error


def _name_and_options(verifier: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(verifier, str) and verifier.lstrip().startswith("{"):
        try:
            verifier = json.loads(verifier)
        except ValueError as error:
            raise UserError(
                f"The verifier's options are not JSON: {error}", key="verifier", value=verifier, remedy="Correct them."
            ) from error
    if isinstance(verifier, str):
        return verifier, {}
    options = dict(verifier)
    if not isinstance(options.get("name"), str):
        raise UserError(
            "The verifier has no name.", key="verifier.name", value=options.get("name"), remedy="Add `name: math`."
        )
    return options.pop("name"), options


@functools.cache
def _by_name(name: str) -> Verifier:
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
    if ":" not in name:
        raise UserError(
            "Unknown verifier.",
            key="verifier",
            value=name,
            remedy=f"Use one of {', '.join(sorted(VERIFIERS))}, or file.py:function.",
        )
    found = user_code.load(name, what="verifier", key="verifier")
    return _blocking(found) if inspect.iscoroutinefunction(found) else found


def _blocking(verifier: Callable[..., Any]) -> Verifier:
    """Wrap a coroutine function, which verl allows as a reward function, for callers without an event loop."""

    @functools.wraps(verifier)
    def call(*args: Any, **kwargs: Any) -> Score:
        return asyncio.run(verifier(*args, **kwargs))

    return call
