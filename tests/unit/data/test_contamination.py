r"""When texts are the same, templates, ground truths, and overlaps of training and evaluation problems."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_s2d.data import templates
from verl_s2d.data.contamination import find_overlaps
from verl_s2d.data.ground_truths import ground_truth
from verl_s2d.data.normalised_text import canonical, words
from verl_s2d.data.sources import Record
from verl_s2d.data.templates import strip as taken_off

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
PIECES = ["x", " ", "\n", BOXED, *(part for t in templates.TEMPLATES.values() for part in (t.before, t.after))]
# Texts that end or begin like a template are the hard ones.
texts = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


@given(texts, st.sampled_from(sorted(templates.TEMPLATES)))
def test_stripping_undoes_applying(problem, name):
    assert taken_off(templates.TEMPLATES[name].apply(problem)) == (problem, name)


def test_other_spellings_and_bare_problems():
    for between in (" ", "\n", "\n\n"):
        assert taken_off(f"Find $x$.{between}{BOXED}") == ("Find $x$.", "boxed")
    assert taken_off("Find $x$.") == ("Find $x$.", None)
    half = templates.TEMPLATES["dapo"].before + "Find $x$."
    assert taken_off(half) == (half, None)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find $x$.", r"find  \(x\)"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"\dfrac{1}{2} \leq \text{a}", r"\frac12 \le a"),
        (r"$a_1, \ldots, a_n$", r"\[a_{1},\dots,a_{n}\]"),
        ("Tom has \\$5 left, and", "Tom has $5$ left and"),
        ("求值：（１）", "求值 (1)。"),
    ],
)
def test_the_same_problem(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("x+y", "x-y"), ("1.5", "15"), ("(1, 2)", "(12)"), ("5!", "5"), ("f'(2)", "f(2)"), ("1:2", "12"), ("x^2", "x_2")],
)
def test_not_the_same_problem(one, other):
    assert canonical(f"Compute ${one}$.") != canonical(f"Compute ${other}$.")


@given(st.lists(st.text(alphabet="ab1\\${}.,'! ", min_size=1)), st.sampled_from([" ", "\n", "\t \n"]))
def test_white_space_makes_no_difference(parts, space):
    pieces = " ".join(parts).split()
    assert canonical(space.join(pieces)) == canonical(" ".join(pieces)) == canonical(f" {' '.join(pieces)}\n")
    assert words(space.join(pieces)) == words(" ".join(pieces))


def test_words():
    assert words(r"Let $x_{12} \in \mathbb{R}$, 求 $\left(3a\right)$") == [
        "let",
        "x",
        "12",
        "in",
        "mathbb",
        "r",
        "求",
        "3",
        "a",
    ]


@pytest.mark.parametrize(
    ("published", "kind", "expected"),
    [
        ("025", "integer", "25"),
        (r"336^\circ", "integer", "336"),
        (r"$\boxed{1,024}$", "integer", "1024"),
        ("-0", "integer", "0"),
        (" -12 ", "integer", "-12"),
        ("000", "integer", "0"),
        ("12,34", "integer", None),
        ("1/2", "integer", None),
        ("4.0", "integer", None),
        ("", "integer", None),
        ("", "formula", None),
        (r"\boxed{\frac{1}{2}}", "formula", r"\frac{1}{2}"),
        (r"\boxed{1} + \boxed{2}", "formula", r"\boxed{1} + \boxed{2}"),
        (r"\{1, 2\}", "formula", r"\{1, 2\}"),
        (r"\frac{1}{2", "formula", None),
        ("}{", "formula", None),
        ("1" * 1001, "formula", None),
    ],
)
def test_ground_truths(published, kind, expected):
    assert ground_truth(published, kind) == expected


@given(st.text(), st.sampled_from(["integer", "formula"]))
def test_ground_truths_are_their_own(text, kind):
    found = ground_truth(text, kind)
    assert found is None or ground_truth(found, kind) == found


LONG = "a b c d e f g h i j k l m n o p q r s t"  # 20 words: 11 ten-grams


def overlaps(training: list[str], evaluation: list[str], **settings) -> list[tuple[str, str, str, float]]:
    made = [
        [Record(f"{side}{i}", text, "1") for i, text in enumerate(texts)]
        for side, texts in (("t", training), ("e", evaluation))
    ]
    return [(o.eval_id, o.train_id, o.how, o.share) for o in find_overlaps(made[0], {"set": made[1]}, **settings)]


def test_exact_and_ngram_overlaps():
    training = [LONG.upper(), f"so {LONG}!", "a b c d e f g h i j k l m n and then other words", "nothing of it"]
    assert overlaps(training, [LONG, "something else"]) == [("e0", "t0", "exact", 1.0), ("e0", "t1", "ngram", 1.0)]
    found = overlaps(training, [LONG], share=0.4)
    assert found[2:] == [("e0", "t2", "ngram", 0.455)], "5 of the 11 ten-grams"
    assert len(overlaps(training, [LONG], n=14, share=0.1)) == 3
    assert overlaps([LONG[:20]], [LONG], share=0.01) == [("e0", "t0", "ngram", 0.091)]


def test_short_problems_overlap_only_as_a_whole():
    assert overlaps(["Compute $1 - 2$", "Please compute 1 + 2 now"], ["Compute $1 + 2$."]) == [
        ("e0", "t0", "ngram", 1.0)
    ]
    assert overlaps(["$+$"], ["$-$"]) == [], "no words are no overlap"


def test_evaluation_problems_that_share_ngrams_are_told_apart():
    other = " ".join(reversed(LONG.split()))
    assert overlaps([f"{LONG} {other}"], [LONG, other, LONG]) == [
        ("e0", "t0", "ngram", 1.0),
        ("e1", "t0", "ngram", 1.0),
        ("e2", "t0", "ngram", 1.0),
    ]


def test_no_torch_and_no_datasets_before_the_hub_is_asked():
    code = "import sys, verl_s2d.data.prepare; assert not {'torch', 'verl', 'datasets', 'pandas'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
