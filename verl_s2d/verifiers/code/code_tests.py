"""Read ground truths of code problems: the layouts that verl's data sets have, as JSON text or as a mapping.

| layout | data sets | test |
|---|---|---|
| `{"inputs": [...], "outputs": [...]}` | APPS, TACO, CodeContests, Codeforces | standard input and output |
| the same with `"fn_name": name` | APPS, TACO | a call: JSON arguments, one a line, or a list; JSON result |
| `{"assert_case": [...]}` | KodCode, MBPP | Python statements after the program |
| `[{"input": ..., "output": ...}, ...]` | Codeforces, LiveCodeBench | standard input and output |
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_s2d.errors import UserError


@dataclass(frozen=True)
class InputTest:
    """Standard input, and the expected standard output."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class CallTest:
    """A function of the program or of its class Solution, arguments, and the expected result."""

    function: str
    arguments: tuple[Any, ...]
    result: Any


@dataclass(frozen=True)
class AssertTest:
    """An `assert` of the program's values.

    Attributes:
        text: the statements.
        compared: (expression, expected value) of each, if all are `assert expression == literal`; the box then does
            not see what is expected. None if not.
    """

    text: str
    compared: tuple[tuple[str, Any], ...] | None


CodeTest = InputTest | CallTest | AssertTest


def read_tests(ground_truth: Any) -> list[CodeTest]:
    """Read a ground truth.

    Raises:
        UserError: it is not in a known layout, or has no test.
    """
    try:
        truth = json.loads(ground_truth) if isinstance(ground_truth, str | bytes) else ground_truth
        tests = _read(truth)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError) as error:
        raise _unreadable(ground_truth, f"{type(error).__name__}: {error}") from error
    if not tests:
        raise _unreadable(ground_truth, "there is no test")
    return tests


def _read(truth: Any) -> list[CodeTest]:
    if _is_list(truth):
        pairs = [(pair["input"], pair["output"]) for pair in truth]
        return [InputTest(_text(given), _text(expected)) for given, expected in pairs]
    if not isinstance(truth, Mapping):
        raise TypeError("neither a mapping nor a list of tests")
    cases = truth.get("assert_case")
    if cases is not None and len(cases):
        if any(output not in (None, "") for output in truth.get("outputs") or []):
            raise ValueError("asserts and outputs together")
        return [_assert(case) for case in cases]
    inputs, outputs = list(truth["inputs"]), list(truth["outputs"])
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    name = truth.get("fn_name")
    if name:
        return [CallTest(str(name), _arguments(i), _result(o)) for i, o in zip(inputs, outputs, strict=True)]
    return [InputTest(_text(i), _text(o)) for i, o in zip(inputs, outputs, strict=True)]


def _text(value: Any) -> str:
    """APPS has some inputs and outputs as lists of lines."""
    if _is_list(value):
        return "\n".join(map(_text, value))
    if not isinstance(value, str):
        raise TypeError(f"a test of {type(value).__name__} instead of text")
    return value


def _arguments(value: Any) -> tuple[Any, ...]:
    found = [json.loads(line) for line in value.splitlines() if line.strip()] if isinstance(value, str) else list(value)
    # JSON has made texts of the keys of a dictionary.
    if found and isinstance(found[0], dict) and found[0] and all(_is_integer(key) for key in found[0]):
        found[0] = {int(key): item for key, item in found[0].items()}
    return tuple(found)


def _result(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _assert(case: Any) -> AssertTest:
    if not isinstance(case, str) or not case.strip():
        raise TypeError("an empty assert")
    return AssertTest(case, _compared(ast.parse(case).body))


def _compared(statements: Sequence[ast.stmt]) -> tuple[tuple[str, Any], ...] | None:
    found = []
    for statement in statements:
        test = statement.test if isinstance(statement, ast.Assert) else None
        if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
            return None
        try:
            found.append((ast.unparse(test.left), ast.literal_eval(test.comparators[0])))
        except (ValueError, TypeError):
            return None
    return tuple(found)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or type(value).__name__ == "ndarray"


def _is_integer(text: Any) -> bool:
    return isinstance(text, str) and text.removeprefix("-").isdecimal()


def _unreadable(ground_truth: Any, reason: str) -> UserError:
    return UserError(
        f"The tests of a code problem do not parse: {reason}.",
        key="reward_model.ground_truth",
        value=str(ground_truth)[:200],
        remedy='Write JSON: {"inputs": [...], "outputs": [...]}, with "fn_name" for calls, or {"assert_case": [...]}.',
    )
