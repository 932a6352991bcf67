"""Define rows that stop where another row's budget is used up: `matched:`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from verl_s2d.recipe.rows import FILE_NAME, check_rows
from verl_s2d.validation import Refused, Section

LedgerItem = Literal["labels", "verifier_calls", "sampled_tokens", "updates"]
"""Quantity by which rows are matched."""


class Matched(Section):
    """An additional row: `row`, whose last stage stops once the whole row has consumed as much as the row `to`.

    It stops at the first step at or above that amount, whatever the stage's `steps`. The report shows the difference.
    """

    row: str
    """Row whose last stage stops earlier or later."""
    to: str
    """Row that gives the budget."""
    by: LedgerItem
    """Item of the ledger."""


def check_matched(matched: Mapping[str, Matched], plain: Iterable[str]) -> None:
    """Raise Refused for a name that is taken or unusable, an unknown row, or a circle.

    Args:
        plain: names of the rows that are not matched.
    """
    plain = list(plain)
    for name, chosen in matched.items():
        key = f"matched.{name}"
        if name in plain or not FILE_NAME.fullmatch(name):
            raise Refused(
                "A matched row is one more row, under a name of its own.",
                key=key,
                value=name,
                remedy="Use letters, digits, '.', '_', '-', and not the name of another row.",
            )
        check_rows([chosen.row], f"{key}.row", plain)
        check_rows([chosen.to], f"{key}.to", (*plain, *matched))
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
