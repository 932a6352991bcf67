"""Write tables as markdown."""

from __future__ import annotations


def head(*titles: str) -> list[str]:
    """Write the head of a table."""
    return [line(*titles), line(*["---"] * len(titles))]


def line(*cells: str) -> str:
    """Write a line of a table."""
    return f"| {' | '.join(cells)} |"
