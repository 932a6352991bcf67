"""Read questions and hints from what a model has written, and drop those that are malformed, repeated or known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verl_s2d.data.contamination import find_overlaps
from verl_s2d.data.normalised_text import canonical
from verl_s2d.data.sources import Record


@dataclass(frozen=True)
class Proposal:
    """A question and a hint for it."""

    question: str
    hint: str


@dataclass(frozen=True)
class Form:
    """The form of a proposal: a pattern with the groups question and hint, and bounds of both in characters."""

    pattern: str
    question_characters: tuple[int, int]
    hint_characters: tuple[int, int]


def parsed(texts: Iterable[str], form: Form, dropped: Counter[str]) -> list[Proposal]:
    """Read one proposal from each text; count those `dropped` as malformed or by their length.

    The texts are a model's output: they are searched and never evaluated.
    """
    pattern, found = re.compile(form.pattern), []
    for text in texts:
        if (match := pattern.search(text)) is None:
            dropped["malformed"] += 1
            continue
        proposal = Proposal(match["question"].strip(), match["hint"].strip())
        lengths = ((proposal.question, form.question_characters), (proposal.hint, form.hint_characters))
        if all(least <= len(part) <= most for part, (least, most) in lengths):
            found.append(proposal)
        else:
            dropped["length"] += 1
    return found


def distinct(proposals: Sequence[Proposal], known: Sequence[str], dropped: Counter[str]) -> list[Proposal]:
    """Keep the first proposal of each question; count those `dropped` as repeated, or as those of known problems.

    Args:
        known: questions of problems that have labels, are evaluated on, or were proposed before. A question counts as
            known where it equals one after normalisation, or has half of its word 10-grams.
    """
    first: dict[str, Proposal] = {}
    for proposal in proposals:
        # A question without a letter or digit has no normal form that tells it from others.
        first.setdefault(canonical(proposal.question) or proposal.question, proposal)
    dropped["repeated"] += len(proposals) - len(first)
    new = [Record(str(number), proposal.question, "") for number, proposal in enumerate(first.values())]
    records = [Record(str(number), text, "") for number, text in enumerate(known)]
    overlapping = {overlap.train_id for overlap in find_overlaps(new, {"known": records})}
    dropped["known"] += len(overlapping)
    return [proposal for number, proposal in enumerate(first.values()) if str(number) not in overlapping]
