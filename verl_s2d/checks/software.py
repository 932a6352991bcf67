"""Check installed versions, trackers and the verifier."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any

from verl_s2d.errors import Faults, UserError
from verl_s2d.validation import suggestion
from verl_s2d.workflow.plan import Plan

VERL_AT_LEAST, VERL_BELOW = "0.9.1", "0.10"


def check_versions() -> None:
    """Raise UserError unless a supported version of verl is installed."""
    from packaging.version import Version

    bounds = f">={VERL_AT_LEAST},<{VERL_BELOW}"
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("verl is not installed.", key="verl", remedy=f'pip install "verl{bounds}"') from None
    if not Version(VERL_AT_LEAST) <= Version(found) < Version(VERL_BELOW):
        raise UserError(
            "verl-s2d does not support the installed version of verl.",
            key="verl",
            value=found,
            remedy=f'pip install "verl{bounds}"',
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package, which has its name, is not installed."""
    faults = Faults()
    for name in names:
        with faults.collected():
            if importlib.util.find_spec(name) is None:
                raise UserError("The tracker is not installed.", key="logger", value=name, remedy=f"pip install {name}")
    faults.raise_found()


def check_verifier(plan: Plan) -> None:
    """Raise UserError unless every verifier of the recipe is a working built-in one, or a function of its file."""
    from verl_s2d.verifiers.registry import by_data_source

    chosen = by_data_source(plan.recipe.verifier)
    if chosen is None:
        _check_one(plan, plan.recipe.verifier, "verifier")
        return
    faults = Faults()
    for source, one in chosen.items():
        with faults.collected():
            _check_one(plan, one, f"verifier.{source}")
    faults.raise_found()


def _check_one(plan: Plan, chosen: str | Mapping[str, Any], key: str) -> None:
    from verl_s2d.verifiers.registry import VERIFIERS

    name = chosen if isinstance(chosen, str) else chosen.get("name")
    file, colon, function = str(name).rpartition(":")
    if not colon or not isinstance(chosen, str):
        if name not in VERIFIERS:
            raise UserError(
                "Unknown verifier." if not colon else "Options are for named verifiers.",
                key=key if isinstance(chosen, str) else f"{key}.name",
                value=name,
                remedy=f"{suggestion(name, VERIFIERS)} Or give file.py:function, without options.",
            )
        _check_named(json.dumps(chosen if not isinstance(chosen, str) else {"name": chosen}, sort_keys=True))
        return
    try:
        tree = ast.parse((plan.recipe.directory / file).read_text())
    except SyntaxError as error:
        raise UserError(
            f"The verifier's file is not valid Python: {error}", key=key, value=name, remedy="Correct it."
        ) from error
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    if function not in names:
        raise UserError(
            f"The file has no function {function!r}.", key=key, value=name, remedy=suggestion(function, names)
        )


@functools.cache
def _check_named(verifier: str) -> None:
    """Check a built-in verifier, once per process, as this may start a verifier process."""
    from verl_s2d.verifiers.registry import check

    check(verifier)
