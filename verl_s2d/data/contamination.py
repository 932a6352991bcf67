"""Find training problems that equal an evaluation problem after normalisation, or share word n-grams with it.

The n-gram rule reports a pair if the fraction of the evaluation problem's distinct n-grams in the training problem
reaches a threshold. One shared n-gram is weak evidence in mathematics ("where m and n are relatively prime positive
integers"), so the fraction decides. Problems shorter than n words have to consist of the same words in the same order.

Defaults: n = 10 and half of the n-grams. Phi-1 and Cosmopedia also select candidates with n = 10, and Cosmopedia
decides by half of the evaluation text. With GPT-3's n = 13 a tenth of MATH-500 (51 problems of fewer than 13 words)
would fall under the rule for short problems.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from verl_s2d.data.normalised_text import words
from verl_s2d.data.sources import Record

NGRAM = 10
"""Words per n-gram."""
SHARE = 0.5


@dataclass(frozen=True)
class Overlap:
    """A training problem that equals or nearly equals an evaluation problem.

    Attributes:
        share: fraction of the evaluation problem's n-grams in the training problem, rounded to 3 digits; 1 if exact.
    """

    eval_set: str
    eval_id: str
    train_id: str
    how: Literal["exact", "ngram"]
    share: float


def find_overlaps(
    training: Sequence[Record], evaluation: Mapping[str, Sequence[Record]], *, n: int = NGRAM, share: float = SHARE
) -> list[Overlap]:
    """Find every overlapping pair, ordered by evaluation set and problem, then by decreasing share.

    Args:
        n: words per n-gram.
        share: smallest fraction, in (0, 1], of an evaluation problem's n-grams that makes an overlap.
    """
    exact: dict[str, list[int]] = defaultdict(list)
    grams: dict[str, list[int]] = defaultdict(list)
    problems = [(name, record) for name, records in evaluation.items() for record in records]
    sizes = []
    for number, (_, record) in enumerate(problems):
        exact[record.canonical].append(number)
        own = _grams(record.text, n)
        sizes.append(len(own))
        for gram in own:
            grams[gram].append(number)
    found: list[tuple[int, float, Overlap]] = []
    for record in training:
        same = set(exact.get(record.canonical, ()))
        shared = Counter(number for gram in _grams(record.text, n) & grams.keys() for number in grams[gram])
        for number in same | {k for k, count in shared.items() if count >= share * sizes[k]}:
            part = 1.0 if number in same else shared[number] / sizes[number]
            name, problem = problems[number]
            how = "exact" if number in same else "ngram"
            found.append((number, -part, Overlap(name, problem.id, record.id, how, round(part, 3))))
    return [overlap for *_, overlap in sorted(found, key=lambda f: (f[0], f[1], f[2].train_id))]


def _grams(text: str, n: int) -> set[str]:
    """Return the distinct n-grams of a text. A text of fewer than n words is one gram, which no longer text has."""
    found = words(text)
    if len(found) < n:
        return {"\n".join(found)} if found else set()
    return {" ".join(found[i : i + n]) for i in range(len(found) - n + 1)}
