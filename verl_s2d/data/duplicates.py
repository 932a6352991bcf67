"""Reduce rows to one per problem: remove copies, drop contradictions, count both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from verl_s2d.data.sources import Record
from verl_s2d.errors import UserError


@dataclass(frozen=True)
class Contradiction:
    """Rows of one problem with different answers; `kept` is None if no answer is most frequent."""

    ids: list[str]
    answers: list[str]
    kept: str | None


@dataclass(frozen=True)
class Duplicates:
    """Counts of a file's rows: rows = identical + same_text + unresolved + problems kept.

    Attributes:
        identical: rows that repeat an earlier row, id included. DAPO-Math-17k is published with each row 100 times.
        same_text: rows of the same problem with another id or spelling (see `normalised_text.canonical`).
        unresolved: rows dropped because copies of their problem disagree about the answer.
    """

    rows: int
    identical: int
    same_text: int
    unresolved: int
    contradictions: list[Contradiction]


def deduplicate(records: Sequence[Record], name: str) -> tuple[list[Record], Duplicates]:
    """Keep one record per problem, in order of first appearance.

    Of several copies the one with the smallest id is kept, so the choice does not depend on the file's order. If copies
    disagree about the answer, the most frequent answer wins; on a tie the right label is unknown and the problem is
    dropped.

    Args:
        records: distinct rows, each with the number of its copies.
        name: name of the data set, for the error.

    Raises:
        UserError: two different problems have the same id.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.canonical, []).append(record)
    kept, contradictions, same_text, unresolved = [], [], 0, 0
    for group in groups.values():
        winner = _answer(group)
        chosen = min((r for r in group if r.answer == winner), key=lambda r: (r.id, r.text), default=None)
        if chosen is None:
            unresolved += len(group)
        else:
            kept.append(chosen)
            same_text += len(group) - 1
        answers = sorted({r.answer for r in group})
        if len(answers) > 1:
            contradictions.append(Contradiction(sorted({r.id for r in group}), answers, chosen and chosen.id))
    _require_unique_ids(kept, name)
    rows = sum(r.copies for r in records)
    return kept, Duplicates(rows, rows - len(records), same_text, unresolved, contradictions)


def _answer(group: Sequence[Record]) -> str | None:
    votes: Counter[str] = Counter()
    for record in group:
        votes[record.answer] += record.copies
    (first, most), *others = votes.most_common(2)
    return None if others and others[0][1] == most else first


def _require_unique_ids(records: Sequence[Record], name: str) -> None:
    repeated = [i for i, count in Counter(r.id for r in records).items() if count > 1]
    if repeated:
        raise UserError(
            f"{len(repeated)} ids of {name} are used for more than one problem.",
            key=f"{name}: id",
            value=repeated[0],
            remedy="Give every problem an id of its own; the label ledger counts by id.",
        )
