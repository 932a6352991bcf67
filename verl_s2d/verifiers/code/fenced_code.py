"""Extract the program of a response: its last fenced code block after the thinking."""

from __future__ import annotations

_PYTHON = frozenset({"", "python", "python3", "py", "py3"})


def last_block(response: str, language: str) -> str | None:
    """Return the last fenced block without a language or of this one; None without one.

    A block that the response does not close ends with it. Thinking that has not ended has no program yet.
    """
    accepted = _PYTHON if language == "python" else {"", language}
    lines = response.rpartition("</think>")[2].partition("<think>")[0].splitlines()
    found, block, inside = None, [], None
    for line in lines:
        mark = line.strip()
        if mark.startswith("```"):
            if inside is None:
                inside, block = mark[3:].strip().lower(), []
            else:
                found = "\n".join(block) if inside in accepted else found
                inside = None
        elif inside is not None:
            block.append(line)
    if inside is not None and inside in accepted:
        found = "\n".join(block)
    return found if found is None or found.strip() else None
