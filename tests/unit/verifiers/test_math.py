r"""The math verifier: what counts as the answer, which answers are equivalent, and DAPO's convention."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

pytest.importorskip("math_verify")
from tests.support.published import math500_answers, rows
from tests.support.verifiers.math_answers import DIFFERENT, SAME
from verl_s2d.errors import UserError
from verl_s2d.platforms import helper_process
from verl_s2d.verifiers import ledgered, process_pool
from verl_s2d.verifiers.math import mathematics
from verl_s2d.verifiers.math.extraction import MAX_CHARACTERS, final_answer
from verl_s2d.verifiers.math.mathematics import Options, judge
from verl_s2d.verifiers.math.normal_form import normal_form
from verl_s2d.verifiers.registry import check, resolve


def score(response: str, truth: str, **options) -> float:
    return mathematics.compute_score("math", response, truth, {"index": "p"}, **options)


def test_math_500():
    truths = math500_answers()
    assert len(truths) == 500
    assert [t for t in truths if score(rf"Hence \boxed{{{t}}}.", t) != 1.0] == []
    assert [t for t in truths if score(f"Answer: ${t}$", t, form="answer") != 1.0] == []


def test_math_500_by_algebra():
    """Past the comparison of text: math-verify has to read all of them, and to tell them from their neighbours."""
    forms = [normal_form(t) for t in math500_answers()]
    forms = [form for form in forms if not form.is_text and not form.base]
    compare = process_pool.shared().compare
    assert [f.text for f in forms if compare(f.text, f.text, 20.0) != "equal"] == []
    pairs = [(a.text, b.text) for a, b in pairwise(forms) if a.value is None and a.text != b.text]
    assert [pair for pair in pairs if compare(*pair, 20.0) != "different"] == []


def test_both_tables_are_large_enough():
    assert len(SAME) >= 60 and len(DIFFERENT) >= 40


@pytest.mark.parametrize(("truth", "answer"), SAME)
def test_equivalent(truth, answer):
    assert score(rf"So it is \boxed{{{answer}}}.", truth, seconds=20) == 1.0


@pytest.mark.parametrize(("truth", "answer"), DIFFERENT)
def test_not_equivalent(truth, answer):
    assert score(rf"So it is \boxed{{{answer}}}.", truth, seconds=20) == 0.0


@pytest.mark.parametrize(
    ("response", "boxed", "answer", "either"),
    [
        (r"\boxed{3} and \boxed{4}", "3, 4", None, "3, 4"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}", None, r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right.", None, r"\left\{ 1, 2 \right."),
        (r"\boxed{\boxed{5}}", "5", None, "5"),
        (r"\fbox{5}, then \boxed 7", "7", None, "7"),
        (r"\boxed{5} \boxed{6", None, None, None),
        (r"\boxed{}", None, None, None),
        ("Answer: 34", None, "34", "34"),
        ("answer : $34$.", None, "34", "34"),
        ("Answer: 1\nAnswer: 2\n", None, "2", "2"),
        ("**Final Answer:** $\\frac{1}{2}$", None, r"\frac{1}{2}", r"\frac{1}{2}"),
        ("Answer:\n$$\n12\n$$", None, "12", "12"),
        (r"Answer: \[ x = 2 \]", None, "x = 2", "x = 2"),
        (r"Answer: the smallest is $\sqrt{2}$.", None, r"\sqrt{2}", r"\sqrt{2}"),
        (r"Answer: $\boxed{5}$", "5", "5", "5"),
        (r"Answer: $\boxed{5}$ or $\boxed{6}$", "5, 6", "5, 6", "5, 6"),
        ("Answer: it is at least $5$", None, "it is at least $5", "it is at least $5"),
        (r"Answer: 3, or \boxed{4}", "4", "4", "4"),
        ("Answer: 3\nno, \\boxed{4}", "4", "3", "4"),
        ("\\boxed{4}\nAnswer: 3", "4", "3", "3"),
        (r"<think>\boxed{1} Answer: 1</think> \boxed{2}", "2", None, "2"),
        (r"<think>\boxed{1}</think> I do not know.", None, None, None),
        ("34", None, None, None),
        ("", None, None, None),
        (r"\boxed{9}" + " " * MAX_CHARACTERS, None, None, None),
    ],
)
def test_what_counts_as_the_answer(response, boxed, answer, either):
    assert [final_answer(response, form) for form in ("boxed", "answer", "either")] == [boxed, answer, either]


def test_dapo_integers():
    published = [row["reward_model"]["ground_truth"] for row in rows("dapo-math-17k")]
    truths = [*published, *map(str, [*range(-20, 1000), 10**6, 20202020, 2**61 - 1, -(10**9)])]
    wrong = [t for t in truths if score(f"so\n\nAnswer: ${t}$", t, convention="dapo", form="answer") != 1.0]
    assert len(published) == 49 and wrong == []
    assert [t for t in truths[:500] if score(rf"\boxed{{{t}}}", t) != 1.0] == []


@pytest.mark.parametrize(
    ("response", "form", "expected"),
    [
        ("Answer: 34", "answer", 1.0),
        ("answer:34", "answer", 1.0),
        (r"Answer: \boxed{34}", "answer", 1.0),
        ("Answer: $x = 34$", "answer", 1.0),
        (r"Answer: 34 \text{ cm}", "answer", 1.0),
        ("Answer: 34 degrees", "answer", 1.0),
        ("Answer: 034", "answer", 0.0),
        ("Answer: 34.0", "answer", 0.0),
        ("Answer: 68/2", "answer", 0.0),
        (r"\boxed{34}", "answer", 0.0),
        (r"\boxed{34}", "boxed", 1.0),
        (r"\boxed{34}", "either", 1.0),
        ("Answer: 35\n\\boxed{34}", "either", 0.0),
        ("Answer: 34" + " " * 300, "answer", 0.0),
        ("<think>Answer: 34</think>", "answer", 0.0),
    ],
)
def test_dapo_convention(response, form, expected):
    assert score(response, "34", convention="dapo", form=form) == expected


def test_dapo_agrees_with_verl():
    from verl.utils.reward_score import math_dapo

    for truth, answer in [*SAME, *DIFFERENT, ("1234", "1,234"), ("34", "34 dollars"), ("-3", "- 3")]:
        truth = "34" if not truth.lstrip("-").isdigit() else truth
        for response in (f"Answer: {answer}", rf"\boxed{{{answer}}}"):
            expected = float(math_dapo.compute_score(response, truth)["acc"])
            assert score(response, truth, convention="dapo") == expected


def test_check():
    mathematics.check()
    check({"name": "math", "convention": "dapo"}, {"data_source": "s", "ground_truth": "3", "extra_info": None})


def test_check_without_math_verify(monkeypatch):
    without = "import sys; sys.modules['latex2sympy2_extended'] = None\n"
    monkeypatch.setattr(helper_process, "_CODE", without + helper_process._CODE)
    monkeypatch.setattr(process_pool, "_pool", process_pool.Pool(1))
    with pytest.raises(UserError, match="does not start") as caught:
        mathematics.check()
    assert caught.value.remedy == "pip install math-verify" and process_pool.shared().pids() == []


def test_check_of_a_verifier_that_raises(monkeypatch, tmp_path):
    def raises(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(mathematics, "normal_form", raises)
    with pytest.raises(UserError, match="RuntimeError: a bug"):
        mathematics.check()
    (tmp_path / "v.py").write_text("def raises(**_): raise KeyError('x')\ndef text(**_): return 'right'")
    problem = {"data_source": "s", "ground_truth": "3", "extra_info": {}}
    for name, message in (("raises", "fails on the response ''"), ("text", "returned 'right', which is no score")):
        with pytest.raises(UserError, match=message):
            check(f"{tmp_path}/v.py:{name}", problem)
    check(f"{tmp_path}/v.py:raises")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"form": "box"}, "verifier.form"),
        ({"convention": "verl"}, "verifier.convention"),
        ({"seconds": 0}, "verifier.seconds"),
        ({"seconds": "2"}, "verifier.seconds"),
        ({"secs": 2}, "verifier.secs"),
    ],
)
def test_bad_options(options, key):
    with pytest.raises(UserError) as caught:
        check({"name": "math", **options})
    assert caught.value.key == key


def test_bad_ground_truth():
    for truth in ("", None, ["3"]):
        with pytest.raises(UserError, match="no ground truth"):
            score(r"\boxed{3}", truth)
    with pytest.raises(UserError, match="compares integers"):
        score("Answer: 1/2", "1/2", convention="dapo")
    assert score(r"\boxed{3}", 3) == 1.0 and score(r"\boxed{3}", r"\boxed{3}") == 1.0


def test_by_name_with_options():
    assert resolve("math") is mathematics.compute_score
    arguments = {"data_source": "s", "solution_str": r"Answer: 2 or \boxed{1}", "ground_truth": "1"}
    for verifier in ({"name": "math", "form": "answer"}, '{"name": "math", "form": "answer"}'):
        assert resolve(verifier)(**{**arguments, "solution_str": "Answer: 2\n\\boxed{1}"}) == 0.0
    for verifier in ({"form": "boxed"}, "{name: math}"):
        with pytest.raises(UserError):
            resolve(verifier)


def test_calls_are_entered_in_the_ledger(tmp_path):
    from omegaconf import OmegaConf

    verifier = OmegaConf.create({"name": "math", "form": "boxed"})
    for number, expected in ((1, 1.0), (2, 0.0)):
        result = ledgered.compute_score(
            *("s", rf"\boxed{{{number}/2}}", "0.5", {"index": f"p{number}"}),
            verifier=verifier,
            ledger_dir=str(tmp_path),
        )
        assert result == expected
    (file,) = tmp_path.iterdir()
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["p1", "p2"]


def test_from_threads_and_from_an_event_loop():
    cases = [(t, a, 1.0) for t, a in SAME] + [(t, a, 0.0) for t, a in DIFFERENT]
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda c: score(rf"\boxed{{{c[1]}}}", c[0], seconds=20), cases))
    assert results == [expected for *_, expected in cases]

    async def gather() -> list[float]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(None, score, rf"\boxed{{{a}}}", t) for t, a, _ in cases[:40]]
        return [*await asyncio.gather(*calls), score(r"\boxed{\sqrt{8}}", r"2\sqrt{2}")]

    assert asyncio.run(gather()) == [1.0] * 41


def test_verdicts_say_how():
    how = {judge(rf"\boxed{{{a}}}", r"\sqrt{8}", Options()).how for a in ("2\\sqrt2", "3", "9" * 500, "\\sqrt{8}")}
    assert how == {"equal", "different", "screened", "text"} and judge("none", "3").how == "none"
