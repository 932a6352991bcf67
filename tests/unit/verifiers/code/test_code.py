"""Verifier `code`: verdicts of each layout, hostile programs, and what cannot be judged."""

from __future__ import annotations

import json

import pytest

from tests.support.sandbox.boxes import require_isolation
from verl_s2d.errors import Unscored, UserError
from verl_s2d.sandbox.sandbox import Sandbox, shared
from verl_s2d.verifiers.code import code_verifier
from verl_s2d.verifiers.registry import check_solution, resolve, score_of
from verl_s2d.verifiers.remembered import Remembered
from verl_s2d.verifiers.trial import try_verifier


@pytest.fixture(autouse=True, scope="module")
def isolated():
    require_isolation(shared())
    yield
    shared().close()


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(code_verifier, "_passed", Remembered())


def score(program: str, truth: object, **options):
    response = f"Think of it.\n```python\n{program}\n```\nDone."
    return code_verifier.compute_score("taco", response, json.dumps(truth), {"index": "p"}, **options)


DOUBLE = {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]}
LINES = {"inputs": [["1", "2"]], "outputs": [["2", "1"]]}
PAIRS = [{"input": "1", "output": "2"}]
CALL = {"fn_name": "add", "inputs": ["1\n2", '[1]\n"a"'], "outputs": ["3", '[[1], "a"]']}
APPS = {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}
ASSERTS = {"assert_case": ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]}
BLOCK = {"assert_case": ["import math\nx = add(1, 2)\nassert math.isclose(x, 3)"], "inputs": [""], "outputs": [None]}
ADD = "def add(a, b):\n    return a + b if type(a) is type(b) else (a, b)"


@pytest.mark.parametrize(
    ("program", "truth"),
    [
        ("print(2 * int(input()))", DOUBLE),
        ("if __name__ == '__main__':\n    print(f'  {2 * int(input())}  \\n')\n    exit()", DOUBLE),
        ("import sys\nprint(*reversed(sys.stdin.read().split()), sep='\\n')", LINES),
        ("print(2)", PAIRS),
        (ADD, CALL),
        (ADD, APPS),
        (ADD, ASSERTS),
        (ADD, BLOCK),
        ("class Solution:\n    def add(self, a: List[int], b: Optional[int]):\n        return a + b", APPS),
        (f"print('noise')\n{ADD}", APPS),
        ("print(0.3333333333)", {"inputs": [""], "outputs": ["0.33333333334"]}),
    ],
)
def test_right(program, truth):
    assert score(program, truth) == 1.0


@pytest.mark.parametrize(
    ("program", "truth"),
    [
        ("print(2)", DOUBLE),
        ("print(2 * int(input()), 7)", DOUBLE),
        ("print(2 * int(input()))\nexit(1)", DOUBLE),
        ("syntax error", DOUBLE),
        ("syntax error", CALL),
        ("def add(a, b): return 3", CALL),
        ("def sub(a, b): return 3", APPS),
        ("def add(a, b): return [3, 4]", APPS),
        ("class A:\n    def __eq__(self, o): return True\ndef add(a, b): return A()", ASSERTS),
        ("class A:\n    def __eq__(self, o): return True\ndef add(a, b): return A()", APPS),
        ("import os\nos._exit(0)", ASSERTS),
        ("import os\nos._exit(0)", BLOCK),
        ("import sys\nsys.exit(0)", BLOCK),
        ("print('3')\ndef add(a, b): return 4", APPS),
        ("def add(a, b): raise SystemExit(0)", ASSERTS),
        ("print(12345679)", {"inputs": [""], "outputs": ["12345678"]}),
    ],
)
def test_wrong(program, truth):
    assert score(program, truth) == 0.0


@pytest.mark.parametrize("truth", [DOUBLE, APPS, ASSERTS])
def test_the_programs_own_time_out_is_wrong(truth):
    assert score("while True: pass", truth, seconds=0.2) == 0.0


@pytest.mark.parametrize("truth", [DOUBLE, APPS, ASSERTS, BLOCK])
def test_a_sandbox_that_fails_is_unscored(truth, monkeypatch):
    def fails(*_):
        raise Unscored("the sandbox failed")

    monkeypatch.setattr(Sandbox, "run", fails)
    with pytest.raises(Unscored):
        score(ADD, truth)


def test_the_first_failing_test_ends(monkeypatch):
    seen = []
    monkeypatch.setattr(code_verifier, "passes", lambda source, test, options: seen.append(test))
    assert score("print(1)", DOUBLE) == 0.0
    assert len(seen) == 1


def test_equal_programs_run_once(monkeypatch):
    ran, passes = [], code_verifier.passes
    monkeypatch.setattr(code_verifier, "passes", lambda *args: ran.append(args) or passes(*args))
    assert [score("print(2)", PAIRS) for _ in range(3)] == [1.0] * 3 and len(ran) == 1
    assert [score("print(3)", PAIRS) for _ in range(3)] == [0.0] * 3 and len(ran) == 2
    assert score("print(2)", DOUBLE) == 0.0 and len(ran) == 4, "other tests"
    assert score("print(2)", PAIRS, seconds=5.0) == 1.0 and len(ran) == 5, "other limits"
    first = score("print(2)", DOUBLE, share=True)
    first["score"] = 7.0
    assert score("print(2)", DOUBLE, share=True) == {"score": 0.5, "acc": 0.0}


def test_share_of_tests():
    assert score("print(2)", DOUBLE, share=True) == {"score": 0.5, "acc": 0.0}
    assert score("print(2 * int(input()))", DOUBLE, share=True) == {"score": 1.0, "acc": 1.0}
    assert score("print(2)", DOUBLE, tests=1) == 1.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("print(2)", 0.0),
        ("```\nprint(2)\n```", 1.0),
        ("```python\nprint(3)\n```\n```py\nprint(2)\n```\n```text\nprint(3)\n```", 1.0),
        ("```python\nprint(2)\n```\n```python\nprint(3)\n```", 0.0),
        ("```python\nprint(2)", 1.0),
        ("<think>```python\nprint(2)\n```", 0.0),
        ("<think>```python\nprint(3)\n```</think>\n```python\nprint(2)\n```", 1.0),
        ("```cpp\nprint(2)\n```", 0.0),
        ("```python\n```", 0.0),
    ],
)
def test_the_last_block_counts(response, expected):
    assert code_verifier.compute_score("taco", response, json.dumps(PAIRS)) == expected


@pytest.mark.parametrize(
    "truth",
    [
        *("7", "not json", "{}", "[]", '{"inputs": ["1"], "outputs": []}', '{"inputs": [], "outputs": []}'),
        *('{"inputs": [1], "outputs": [2]}', '{"assert_case": ["assert ("]}', '{"assert_case": [""]}'),
        '{"fn_name": "f", "inputs": ["(1)"], "outputs": ["1"]}',
    ],
)
def test_tests_that_do_not_parse(truth):
    with pytest.raises(UserError, match="do not parse"):
        code_verifier.check_answer(truth, {})


@pytest.mark.parametrize(
    "options",
    [{"language": "cobol"}, {"language": "cpp"}, {"url": "http://x"}, {"seconds": 0}, {"tests": -1}, {"spelled": 1}],
)
def test_options_that_are_refused(options):
    with pytest.raises(UserError) as error:
        code_verifier.check(**options)
    assert error.value.key == f"verifier.{next(iter(options))}"


def test_a_reference_solution_that_fails_its_own_tests():
    problem = {"data_source": "apps", "ground_truth": json.dumps(DOUBLE), "extra_info": {"solutions": ["print(2)"]}}
    with pytest.raises(UserError, match="fails test 2 of its own"):
        check_solution("code", **problem)
    check_solution({"name": "code", "check_references": False}, **problem)
    with pytest.raises(UserError, match="fails test 2 of its own"):
        try_verifier("code", [problem], "data")


def test_trials_write_programs_where_they_can():
    truths = [DOUBLE, CALL, APPS, BLOCK]
    problems = [{"data_source": "apps", "ground_truth": json.dumps(t), "extra_info": {"index": "p"}} for t in truths]
    trial = try_verifier("code", problems, "data")
    assert (trial.truths, trial.right) == (3, 3)
    alone = try_verifier("code", problems[3:], "data")
    assert (alone.truths, alone.right) == (0, 0)


def test_in_the_registry():
    problem = {"data_source": "taco", "ground_truth": json.dumps(PAIRS), "extra_info": {}}
    assert score_of({"taco": "code"}, problem, "```\nprint(2)\n```") == 1.0
    assert resolve("code") is code_verifier.compute_score
