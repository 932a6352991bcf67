"""Training problems that are evaluation problems, or nearly: equal after normalisation, or sharing n-grams of words.

The n-gram rule: the share of an evaluation problem's distinct n-grams that occur in one training problem reaches a
threshold. A single shared n-gram says little in mathematics ("where m and n are relatively prime positive integers"),
so the share decides. Problems shorter than n words count when their words are the same in the same order.

Defaults: n = 10 and half of the n-grams. Phi-1 and Cosmopedia look for candidates with n = 10, too, and Cosmopedia
decides by half of the evaluation text. GPT-3's n = 13 would leave a tenth of MATH-500 (51 problems have fewer than 13
words) to the rule for short problems.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from verl_s2d.data.normalised_text import words
from verl_s2d.data.sources import Record

NGRAM = 10
"""Words."""
SHARE = 0.5


@dataclass(frozen=True)
class Overlap:
    """A training problem and an evaluation problem that are the same, or nearly.

    Attributes:
        share: share of the evaluation problem's n-grams found in the training problem, rounded to 3 digits; 1 if exact.
    """

    eval_set: str
    eval_id: str
    train_id: str
    how: Literal["exact", "ngram"]
    share: float


def find_overlaps(
    training: Sequence[Record], evaluation: Mapping[str, Sequence[Record]], *, n: int = NGRAM, share: float = SHARE
) -> list[Overlap]:
    """Every overlapping pair once, ordered by evaluation set and problem, then by falling share.

    Args:
        n: words of an n-gram.
        share: of an evaluation problem's n-grams, in (0, 1], from which a pair is reported.
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
    """Distinct n-grams of a text; of one with fewer than n words, all its words as one gram that no longer text has."""
    found = words(text)
    if len(found) < n:
        return {"\n".join(found)} if found else set()
    return {" ".join(found[i : i + n]) for i in range(len(found) - n + 1)}
