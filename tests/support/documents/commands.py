"""Read the commands that a page of the documentation shows."""

from __future__ import annotations

import re

from tests.support.paths import ROOT


def documented_commands(page: str) -> list[str]:
    """List the code blocks of a page under docs/ that are shell commands, as they stand there."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)
    return [block for block in blocks if re.match(r"python|\$\(verl-s2d", block)]


def filled_in(command: str, **values: object) -> str:
    """Replace the placeholders `<name>` of a command, spelled as in the page.

    Raises:
        AssertionError: a placeholder is left.
    """
    for name, value in values.items():
        command = re.sub(rf"<{name}[^>]*>", str(value), command)
    assert not re.search(r"<\w[^>]*>", command), command
    return command
