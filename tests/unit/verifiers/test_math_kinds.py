r"""Answers by the kind of mistake that verifiers make with them (tests/data/math-kinds.jsonl): right and wrong ones."""

from __future__ import annotations

import decimal
import json
from collections import defaultdict

import numpy as np
import pytest

pytest.importorskip("math_verify")
from tests.support.paths import ROOT
from verl_s2d.errors import UserError
from verl_s2d.verifiers.math.mathematics import Options, check_answer, judge
from verl_s2d.verifiers.registry import check_answer as check_with

WHOLE = "whole responses"
KINDS: defaultdict[str, list[dict]] = defaultdict(list)
for line in (ROOT / "tests" / "data" / "math-kinds.jsonl").read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    KINDS[row["kind"]].append(row)

SOLUTION = "She sells 48 / 2 = 24 clips.\nSo there are 48 + 24 = 72 clips in all.\n"


def correct(response: str, truth: object) -> bool:
    return judge(response, truth, Options(seconds=20)).correct


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind):
    frame = "{}" if kind == WHOLE else r"So it is \boxed{{{}}}."
    rows = KINDS[kind]
    refused = [(r["truth"], a) for r in rows for a in r.get("right", ()) if not correct(frame.format(a), r["truth"])]
    granted = [(r["truth"], a) for r in rows for a in r.get("wrong", ()) if correct(frame.format(a), r["truth"])]
    assert refused == [] and granted == []


def test_each_kind_has_right_and_wrong_answers():
    pairs = {
        kind: [sum(len(r.get(side, ())) for r in rows) for side in ("right", "wrong")] for kind, rows in KINDS.items()
    }
    assert all(min(counts) >= 3 and sum(counts) >= 7 for counts in pairs.values())
    assert sum(map(sum, pairs.values())) >= 750


@pytest.mark.parametrize(
    ("truth", "right"),
    [
        (2e-05, r"2 \times 10^{-5}"),
        (1e16, "10^{16}"),
        (1e22, "10000000000000000000000"),
        (0.1 + 0.2, "0.3"),
        (72.0, "72"),
        (-0.5, r"-\frac12"),
        (np.float32(0.1), "0.1"),
        (np.int64(7), "7"),
        (decimal.Decimal("2.50"), "2.5"),
        ("2e-05", "0.00002"),
        ("1e+16", "10^{16}"),
        (r"\[5\]", "5"),
        (r"\(x+1\)", "1+x"),
        ("$$\n\\frac{1}{2}\n$$", "0.5"),
        (SOLUTION + "#### 72", "72"),
        (SOLUTION + "#### 1,072", "1072"),
        (SOLUTION + r"The answer is $\boxed{72}$.", "72"),
        (SOLUTION + r"\boxed{72} or \boxed{24}", "24, 72"),
        (SOLUTION + "Answer: 72", "72"),
        ("\\begin{pmatrix} 1 \\\\\n 2 \\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    ],
)
def test_ground_truths_as_people_have_them(truth, right):
    check_answer(truth, {})
    assert correct(rf"\boxed{{{right}}}", truth) and not correct(rf"\boxed{{{right}+1}}", truth)


@pytest.mark.parametrize(
    "truth",
    [
        *(float("nan"), float("inf"), np.float32("nan"), decimal.Decimal("NaN"), "nan", "NaN", "null", "<NA>", "  "),
        *(None, True, ["3"], SOLUTION, SOLUTION.replace("\n", " "), "5\n6", SOLUTION + r"\boxed{}"),
    ],
)
def test_ground_truths_that_are_none(truth):
    with pytest.raises(UserError) as caught:
        check_with({"name": "math", "form": "boxed"}, "math_dapo", truth, {})
    assert caught.value.key == "reward_model.ground_truth" and caught.value.remedy


def test_hashes_are_an_answer_line_of_form_either_only():
    response = SOLUTION + "#### 72"
    assert [judge(response, "72", Options(form=form)).correct for form in ("either", "boxed", "answer")] == [1, 0, 0]
