"""Find verifiers by name, by file and function, or by a problem's data source, with options."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from verl_s2d import user_code
from verl_s2d.errors import Unscored, UserError
from verl_s2d.verifiers.score import Score

Scored = float | Mapping[str, Any]
"""What verl reads: a number, or a mapping with `score`."""
Verifier = Callable[..., Scored]
Named = str | Mapping[str, Any]
"""`verifier:` of a recipe: a name, file.py:function, a name with options, or a mapping of data sources to these."""

_RETURN_A_SCORE = (
    "Return a finite number, a mapping with `score`, or Score(value), for any response; 0 when it has no answer."
)

VERIFIERS = {
    "code": "verl_s2d.verifiers.code.code_verifier:compute_score",
    "math": "verl_s2d.verifiers.math.mathematics:compute_score",
    "reasoning_gym": "verl_s2d.verifiers.reasoning_gym:compute_score",
    "rubric": "verl_s2d.verifiers.rubric.weighted_criteria:compute_score",
    "verl": "verl_s2d.verifiers.verl_scorers:compute_score",
}
"""Name -> module:function; imported on first use, because a verifier may need a library of its own.

A module may define `check(**options)`, which raises UserError unless the verifier works on this machine,
`check_answer(ground_truth, extra_info, **options)`, which raises UserError unless the verifier can use that answer,
`as_response(ground_truth, extra_info, **options)`, which writes that answer as a response, None if it cannot,
`check_solution(ground_truth, extra_info, **options)`, which raises UserError for a solution in the data that is wrong,
and `extract(response, **options)`, which returns the answer that a response would be scored by, None without one, and
reads no label. `AT_ONCE` is how many of its calls an evaluation makes at the same time; a module without it is called
by one thread.
"""


_EXTRACTING = frozenset({"math"})
"""Verifiers with `extract`: plans read this without importing them."""


_ASKING = frozenset({"rubric"})
"""Verifiers that ask a judge."""


def resolve(verifier: Named) -> Verifier:
    """Resolve a verifier's name, `file.py:function`, a name with options, or a mapping of data sources to these.

    A mapping with `name` is one verifier with options, {name: math, form: boxed}, which become keyword arguments of
    calls; it may also be JSON text, for command lines. A call of a recipe's own function raises UserError for a result
    that is no score: see `require_score`.

    Raises:
        UserError: a name is unknown, a file or function does not load, or options have no name.
    """
    chosen = by_data_source(verifier)
    if chosen is not None:
        found = {source: resolve(one) for source, one in chosen.items()}
        return functools.partial(_score_by_source, verifier, found)
    name, options = _name_and_options(verifier)
    return functools.partial(_by_name(name), **options) if options else _by_name(name)


def by_data_source(verifier: Named) -> dict[str, Named] | None:
    """Return the verifiers by data source; None for a single verifier.

    Raises:
        UserError: the mapping is empty, or an entry is no verifier.
    """
    chosen = _parsed(verifier)
    if isinstance(chosen, str) or "name" in chosen:
        return None
    if not chosen:
        raise UserError("There is no verifier.", key="verifier", value={}, remedy="Name one, such as `verifier: math`.")
    for source, one in chosen.items():
        name = one.get("name") if isinstance(one, Mapping) else one
        if not isinstance(name, str) or (name not in VERIFIERS and ":" not in name):
            raise UserError(
                "Unknown verifier. A mapping without `name` maps data sources to verifiers.",
                key=f"verifier.{source}",
                value=one,
                remedy=f"Use one of {', '.join(sorted(VERIFIERS))}, or file.py:function; or add `name:` to the options "
                "of a single verifier.",
            )
    return {str(source): one for source, one in chosen.items()}


def of_source(verifier: Named, data_source: str) -> Named:
    """Return the verifier of a data source, with its options.

    Raises:
        UserError: there are verifiers by data source, and none for this one.
    """
    chosen = by_data_source(verifier)
    if chosen is None:
        return verifier
    if data_source not in chosen:
        raise UserError(
            "This data source has no verifier.",
            key="verifier",
            value=data_source,
            remedy=f"Add `{data_source}: <verifier>` to it; it has {', '.join(sorted(chosen))}.",
        )
    return chosen[data_source]


def files_of(verifier: Named) -> list[str]:
    """List the files of the recipe's own functions among the verifiers."""
    chosen = by_data_source(verifier)
    names = [_name_and_options(one)[0] for one in ([verifier] if chosen is None else chosen.values())]
    return [name.rpartition(":")[0] for name in names if ":" in name]


def check_answer(verifier: Named, data_source: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> None:
    """Raise UserError for an answer that a built-in verifier cannot use, or without a verifier for its data source."""
    module, options = _module_and_options(of_source(verifier, data_source))
    if hasattr(module, "check_answer"):
        module.check_answer(ground_truth, extra_info, **options)


def at_once(verifier: Named) -> int:
    """Return how many calls may be made at the same time, at most; 1 if a verifier of some data source takes one."""
    chosen = by_data_source(verifier)
    modules = [_module_and_options(one)[0] for one in ([verifier] if chosen is None else chosen.values())]
    return min(getattr(module, "AT_ONCE", 1) for module in modules)


def asks_judge(verifier: Named) -> bool:
    """Report whether a single verifier asks a model, whose answers cost something, without loading it."""
    return _name_and_options(verifier)[0] in _ASKING


def writer_of(verifier: Named) -> Callable[..., str | None] | None:
    """Return the function that writes a problem's answer as a response to a single verifier, None if it has none."""
    module, options = _module_and_options(verifier)
    write = getattr(module, "as_response", None)
    return None if write is None else functools.partial(write, **options)


def check_solution(verifier: Named, data_source: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> bool:
    """Report whether the verifier checks solutions in the data. Raises UserError for one that it finds wrong."""
    module, options = _module_and_options(of_source(verifier, data_source))
    if not hasattr(module, "check_solution"):
        return False
    module.check_solution(ground_truth, extra_info or {}, **options)
    return True


def extractor_of(
    verifier: Named, data_source: str | None = None, *, key: str = "verifier"
) -> Callable[[str], str | None]:
    """Return the function that extracts a response's answer as this verifier does, without a label.

    Args:
        data_source: the problem's, where there are verifiers by data source.
        key: the key that needs it, for messages.

    Raises:
        UserError: the verifier has no such function, does not load, or has an unknown option.
    """
    verifier = verifier if data_source is None else of_source(verifier, data_source)
    if not can_extract(verifier):
        raise UserError(
            "This verifier extracts no answer without reading the label.",
            key=key,
            value=verifier,
            remedy=f"Leave it out, or use one that does: {', '.join(sorted(_EXTRACTING))}.",
        )
    module, options = _module_and_options(verifier)
    module.extract("", **options)
    return functools.partial(module.extract, **options)


def can_extract(verifier: Named) -> bool:
    """Report whether `extractor_of` has a function for this verifier, or for all by data source, without loading it."""
    chosen = by_data_source(verifier)
    return all(_name_and_options(one)[0] in _EXTRACTING for one in ([verifier] if chosen is None else chosen.values()))


def check(verifier: Named, problem: Mapping[str, Any] | None = None, response: str = "") -> None:
    """Check a verifier before anything expensive starts.

    Args:
        problem: data_source, ground_truth and extra_info of a real problem, for which the verifier scores `response`.

    Raises:
        UserError: the verifier does not load, fails its own check, raises, or returns no score.
    """
    chosen = by_data_source(verifier)
    for one in [verifier] if chosen is None else chosen.values():
        module, options = _module_and_options(one)
        if hasattr(module, "check"):
            module.check(**options)
    if problem is not None:
        score_of(verifier, problem, response)


def score_of(verifier: Named, problem: Mapping[str, Any], response: str) -> float:
    """Score a response to a problem: data_source, ground_truth and extra_info.

    Raises:
        UserError: the verifier raises, could not judge, or returns no score.
    """
    verifier = of_source(verifier, problem["data_source"])
    score, name = resolve(verifier), _name_and_options(verifier)[0]
    try:
        result = require_score(score(solution_str=response, **problem), name)
        return float(result["score"] if isinstance(result, Mapping) else result)
    except UserError:
        raise
    except Unscored as error:
        raise UserError(
            f"The verifier could not judge the response {response[:200]!r}: {error}",
            key="verifier",
            value=name,
            remedy="Start the service or free the resource that it needs.",
        ) from error
    except Exception as error:
        raise UserError(
            f"The verifier fails on the response {response[:200]!r}: {type(error).__name__}: {error}",
            key="verifier",
            value=name,
            remedy=_RETURN_A_SCORE,
        ) from error


def require_score(result: Any, verifier: str) -> Scored:
    """Return a verifier's result as verl reads it.

    Raises:
        UserError: `score` (or the result itself), or `acc` where there is one, is not a finite number.
    """
    result = result.written() if isinstance(result, Score) else result
    values = [result]
    if isinstance(result, Mapping):
        values = [result.get("score"), *([result["acc"]] if "acc" in result else [])]
    for value in values:
        try:
            finite = not isinstance(value, str) and math.isfinite(value)
        except (TypeError, ValueError, OverflowError):
            finite = False
        if not finite:
            raise UserError(
                f"The verifier returned {result!r}, which is no score.",
                key="verifier",
                value=verifier,
                remedy=_RETURN_A_SCORE,
            )
    return result


def _module_and_options(verifier: str | Mapping[str, Any]) -> tuple[ModuleType | None, dict[str, Any]]:
    """Return the module of a built-in verifier, None for a recipe's own."""
    name, options = _name_and_options(verifier)
    resolve(verifier)
    return (sys.modules[VERIFIERS[name].partition(":")[0]] if name in VERIFIERS else None), options


def _name_and_options(verifier: Named) -> tuple[str, dict[str, Any]]:
    verifier = _parsed(verifier)
    if isinstance(verifier, str):
        return verifier, {}
    options = dict(verifier)
    if not isinstance(options.get("name"), str):
        raise UserError(
            "The verifier has no name.", key="verifier.name", value=options.get("name"), remedy="Add `name: math`."
        )
    return options.pop("name"), options


def _parsed(verifier: Named) -> Named:
    if not isinstance(verifier, str) or not verifier.lstrip().startswith("{"):
        return verifier
    try:
        return json.loads(verifier)
    except ValueError as error:
        raise UserError(
            f"The verifier's options are not JSON: {error}", key="verifier", value=verifier, remedy="Correct them."
        ) from error


def _score_by_source(verifier: Named, found: Mapping[str, Verifier], data_source: str, **arguments: Any) -> Scored:
    of_source(verifier, data_source)
    return found[data_source](data_source=data_source, **arguments)


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
    return _checked(found, name)


def _checked(verifier: Callable[..., Any], name: str) -> Verifier:
    """Wrap a recipe's own function: its results are checked, and a coroutine function, as verl allows, is run."""

    @functools.wraps(verifier)
    def call(*args: Any, **kwargs: Any) -> Scored:
        result = verifier(*args, **kwargs)
        return require_score(asyncio.run(result) if inspect.iscoroutine(result) else result, name)

    return call
