"""Names of rows, and the rows that a recipe adds by matching them to others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from verl_s2d.validation import Refused, Section, suggestion

ROW_NAMES = (
    "cold-student",
    "direct-grpo",
    "bridge-only-1h",
    "half-split",
    "full-bridge",
    "raw-teacher",
    "opd-only",
    "warmup-only",
    "replay-control",
    "held-out-upstream",
    "same-size-teacher",
    "sft-teacher",
)
DEFAULT_ROWS = ROW_NAMES[:4]

LedgerItem = Literal["labels", "verifier_calls", "sampled_tokens", "updates"]
"""Quantity by which rows are matched."""

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that may become names of files."""


class Matched(Section):
    """One more row: `row`, its last stage stopped where the whole row has consumed what the row `to` consumed.

    It stops at the first step at or past that, however many steps the stage's settings give. The report states the
    difference.
    """

    row: str
    to: str
    by: LedgerItem


def check_matched(matched: Mapping[str, Matched]) -> None:
    """Raise Refused for a name that is taken or unusable, an unknown row, or a circle."""
    for name, chosen in matched.items():
        key = f"matched.{name}"
        if name in ROW_NAMES or not FILE_NAME.fullmatch(name):
            raise Refused(
                "A matched row is one more row, under a name of its own.",
                key=key,
                value=name,
                remedy="Use letters, digits, '.', '_', '-', and not the name of a row that there is.",
            )
        check_rows([chosen.row], f"{key}.row", ROW_NAMES)
        check_rows([chosen.to], f"{key}.to", (*ROW_NAMES, *matched))
        if chosen.to in (name, chosen.row):
            raise Refused(
                "A row cannot be matched to itself.", key=f"{key}.to", value=chosen.to, remedy="Name another row."
            )
        chain = [name]
        while chain[-1] in matched:
            chain.append(matched[chain[-1]].to)
            if chain[-1] in chain[:-1]:
                raise Refused(
                    "These rows are matched in a circle, so none of them says where to stop.",
                    key=f"{key}.to",
                    value=" -> ".join(chain),
                    remedy="Match one of them to a row that is not matched.",
                )


def check_rows(names: Iterable[str], key: str, known: Iterable[str]) -> None:
    """Raise Refused naming the first unknown row and the nearest known one."""
    names, known = list(names), list(known)
    if not names:
        raise Refused("No row is chosen.", key=key, value=names, remedy=f"Choose from {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise Refused("Unknown row.", key=key, value=name, remedy=suggestion(name, known))
