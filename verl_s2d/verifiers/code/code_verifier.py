"""Score programs by a problem's tests: 1.0 if all pass, else 0.0; or the share that passes.

A program that fails, exceeds a limit or gives anything else is wrong. What a program is tested with goes into the box;
what is expected of it stays outside, but for asserts that are no `expression == literal`. A sandbox that cannot run
programs makes the response unscored. Equal programs with equal tests run once a process.
"""

from __future__ import annotations

import ast
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from verl_s2d.errors import Unscored, UserError
from verl_s2d.sandbox.program import Program, Result, RunLimits
from verl_s2d.sandbox.sandbox import SLOTS, shared
from verl_s2d.verifiers.code.code_tests import AssertTest, CallTest, CodeTest, InputTest, read_tests
from verl_s2d.verifiers.code.fenced_code import last_block
from verl_s2d.verifiers.code.fusion_client import run_remote
from verl_s2d.verifiers.code.same_output import same_result, same_text, same_value
from verl_s2d.verifiers.remembered import Remembered

LANGUAGES = frozenset(
    {
        *("python", "cpp", "nodejs", "go", "java", "php", "csharp", "bash", "typescript", "rust", "lua", "R", "perl"),
        *("ruby", "scala", "julia", "kotlin_script", "swift", "racket"),
    }
)
"""Languages that SandboxFusion runs from standard input to standard output."""
REFERENCES = ("reference_solution", "solutions", "solution")
"""Members of extra_info that may hold a program which passes the tests, the first one of a list."""
AT_ONCE = SLOTS
"""Calls that an evaluation makes at the same time."""
_passed: Remembered[int] = Remembered()
"""Tests that each program passed, kept because samples of a prompt are often the same program."""
_HARNESS = Path(__file__).with_name("call_harness.py").read_text()


@dataclass(frozen=True)
class CodeOptions:
    """Options of the verifier.

    Attributes:
        share: score the share of tests that pass; `acc` stays all or nothing.
        tests: tests of each problem to run, the first ones; None: all.
        seconds, memory_mb: limits of each test.
        language: of the programs; others than python need a url.
        url: `/run_code` of a SandboxFusion service, in place of the machine's own sandbox.
        slots: programs at once in each process of verl's that scores.
        allow_unsandboxed: run programs without isolation, as the user who trains.
        check_references: `check` refuses a reference solution that fails its own tests.
    """

    share: bool = False
    tests: int | None = None
    seconds: float = 10.0
    memory_mb: int = 1024
    language: str = "python"
    url: str | None = None
    slots: int = SLOTS
    allow_unsandboxed: bool = False
    check_references: bool = True

    def __post_init__(self) -> None:
        for name in ("tests", "seconds", "memory_mb", "slots"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                raise _bad(name, value, "is a positive number", "Correct it.")
        if self.language not in LANGUAGES:
            raise _bad("language", self.language, "is one that SandboxFusion runs", f"One of {sorted(LANGUAGES)}.")
        if self.language != "python" and self.url is None:
            raise _bad("language", self.language, "needs a service", "Give the url of a SandboxFusion service.")
        if self.url is not None and not self.url.rstrip("/").endswith("/run_code"):
            raise _bad("url", self.url, "ends with /run_code", "Give http://host:port/run_code.")


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **options: Any
) -> float | dict[str, float]:
    """Score a response: 1.0 or 0.0; with `share`, {"score": share of tests, "acc": 1.0 or 0.0}.

    Raises:
        Unscored: the sandbox or the service could not run the program.
        UserError: the tests do not parse, or an option is wrong.
    """
    chosen = _options(**options)
    tests = _tests(ground_truth, chosen)
    source = last_block(solution_str, chosen.language)
    passed = 0
    if source is not None:
        passed = _passed.get([source, repr(tests), repr(chosen)], lambda: _count_passed(source, tests, chosen))
    right = float(passed == len(tests))
    return {"score": passed / len(tests), "acc": right} if chosen.share else right


def _count_passed(source: str, tests: list[CodeTest], options: CodeOptions) -> int:
    """Count the tests that a program passes; without `share` those before the first failure."""
    passed = 0
    for test in tests:
        if passes(source, test, options):
            passed += 1
        elif not options.share:
            break
    return passed


def passes(source: str, test: CodeTest, options: CodeOptions) -> bool:
    """Tell whether a program passes a test. Raises Unscored."""
    if isinstance(test, InputTest):
        result = _run(Program(source, test.stdin), options)
        return result.succeeded and same_text(result.stdout, test.stdout)
    if options.language != "python":
        return isinstance(test, AssertTest) and _run(Program(f"{source}\n\n{test.text}"), options).succeeded
    asked = {"source": source, "function": "", "arguments": "()", "expressions": [], "statements": ""}
    if isinstance(test, CallTest):
        asked |= {"function": test.function, "arguments": repr(test.arguments)}
    elif test.compared is not None:
        asked |= {"expressions": [text for text, _ in test.compared]}
    else:
        asked |= {"statements": test.text}
    mark = secrets.token_hex(16)
    result = _run(Program(_HARNESS, json.dumps({**asked, "mark": mark})), options)
    found, marked, values = result.stdout.partition(mark)
    if not result.succeeded or not marked or found:
        return False
    try:
        values = ast.literal_eval(values)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    if isinstance(test, CallTest):
        return len(values) == 1 and same_result(values[0], test.result)
    if test.compared is None:
        return values == []
    return len(values) == len(test.compared) and all(
        same_value(value, expected) for value, (_, expected) in zip(values, test.compared, strict=True)
    )


def check(**options: Any) -> None:
    """Raise UserError unless programs can be run: in a box of this machine, or on the service."""
    chosen = _options(**options)
    if chosen.url is None:
        shared(chosen.slots, chosen.allow_unsandboxed).check()
        return
    if chosen.language == "python":
        try:
            run_remote(chosen.url, Program("print(1)"), RunLimits(seconds=chosen.seconds))
        except Unscored as error:
            raise _bad("url", chosen.url, f"answers ({error})", "Start the service, or correct the url.") from error


def check_answer(ground_truth: Any, extra_info: Mapping[str, Any] | None, **options: Any) -> None:
    """Raise UserError for tests that do not parse, or that this language cannot run."""
    chosen = _options(**options)
    calls = any(isinstance(test, CallTest) for test in _tests(ground_truth, chosen))
    if calls and chosen.language != "python":
        raise _bad("language", chosen.language, "has no function calls", "Use python for tests with fn_name.")


def check_solution(ground_truth: Any, extra_info: Mapping[str, Any], **options: Any) -> None:
    """Raise UserError for a reference solution that fails its own tests."""
    chosen = _options(**options)
    reference = _reference(extra_info)
    if reference is None or not chosen.check_references:
        return
    for number, test in enumerate(_tests(ground_truth, chosen)):
        if not passes(reference, test, chosen):
            raise UserError(
                f"The problem's reference solution fails test {number + 1} of its own.",
                key="extra_info",
                value=reference[:200],
                remedy="Leave the problem out, or say `check_references: false` in the verifier's options.",
            )


def as_response(ground_truth: Any, extra_info: Mapping[str, Any], data_source: str = "", **options: Any) -> str | None:
    """Write a response that passes: the reference solution, or a table of the tests; None where neither is known."""
    chosen = _options(**options)
    source = _reference(extra_info)
    if source is None and chosen.language == "python":
        source = _table(_tests(ground_truth, chosen))
    return None if source is None else f"```{chosen.language}\n{source}\n```"


def _table(tests: list[CodeTest]) -> str | None:
    if all(isinstance(test, InputTest) for test in tests):
        table = {test.stdin: test.stdout for test in tests}
        return f"import sys\nprint({table!r}[sys.stdin.read()])"
    if all(isinstance(test, CallTest) for test in tests):
        table = {repr(test.arguments): test.result for test in tests}
        return f"def {tests[0].function}(*arguments):\n    return {table!r}[repr(arguments)]"
    return None


def _reference(extra_info: Mapping[str, Any] | None) -> str | None:
    for name in REFERENCES:
        found = (extra_info or {}).get(name)
        if isinstance(found, list | tuple) and found:
            found = found[0]
        if isinstance(found, str) and found.strip():
            return last_block(found, "python") if "```" in found else found
    return None


def _tests(ground_truth: Any, options: CodeOptions) -> list[CodeTest]:
    return read_tests(ground_truth)[: options.tests]


def _run(program: Program, options: CodeOptions) -> Result:
    limits = RunLimits(seconds=options.seconds, memory_mb=options.memory_mb)
    if options.url is not None:
        return run_remote(options.url, program, limits, options.language)
    return shared(options.slots, options.allow_unsandboxed).run(program, limits)


@lru_cache(16)
def _options(**options: Any) -> CodeOptions:
    unknown = sorted(options.keys() - CodeOptions.__dataclass_fields__.keys())
    if unknown:
        remedy = f"It has {', '.join(CodeOptions.__dataclass_fields__)}."
        raise _bad(unknown[0], options[unknown[0]], "is an option of the verifier code", remedy)
    return CodeOptions(**options)


def _bad(name: str, value: Any, rule: str, remedy: str) -> UserError:
    return UserError(f"The code verifier's {name} {rule}.", key=f"verifier.{name}", value=value, remedy=remedy)
