r"""Extract the final answer from a response: the content of its last \boxed{}, or of its last line `Answer: ...`.

Only the end of a response is read, after the model's thinking. Every pattern takes time linear in a window of
MAX_CHARACTERS.
"""

from __future__ import annotations

import re
from typing import Literal

Form = Literal["boxed", "answer", "either"]

MAX_CHARACTERS = 8192
"""Characters read from the end of a response, where answers are."""

_END_OF_THINKING = "</think>"
_ANSWER_LINE = re.compile(r"(?i)answer[ \t]{0,8}:[ \t*]*(?:\n\s{0,8})?([^\n]+)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\s{1,8}(-?\d[\d.,]{0,30}|[A-Za-z])(?![A-Za-z])|(-?\d[\d.,]{0,30})")
_DELIMITED = re.compile(r"\$\$?([^$]+)\$\$?|\\\(([^()]*(?:\([^()]*\)[^()]*)*)\\\)")
_FULL_STOP = re.compile(r"(?<!\\right)\.\s*$")
_OPENERS = (r"\[", "$$", "$", r"\(")
_CLOSERS = (r"\]", "$$", "$", r"\)")


def final_answer(response: str, form: Form) -> str | None:
    r"""Extract the final answer's text, without \boxed and math delimiters; None if there is none.

    Args:
        form: `boxed` reads the last \boxed{} (or \fbox{}), `answer` the last line `Answer: ...`, `either` the later of
            the two.
    """
    thinking = response.rfind(_END_OF_THINKING)
    if thinking >= 0:
        response = response[thinking + len(_END_OF_THINKING) :]
    text = response[-MAX_CHARACTERS:]
    box = max(text.rfind(r"\boxed"), text.rfind(r"\fbox")) if form != "answer" else -1
    line = _last_answer_line(text) if form != "boxed" else None
    if line is not None and line.start() > box:
        # In output such as "**Answer:** $\boxed{5}$" the box is inside the line, so `box` is later.
        return _undelimited(line.group(1))
    return _boxed(text, box) if box >= 0 else None


def _last_answer_line(text: str) -> re.Match[str] | None:
    last = max(_ANSWER_LINE.finditer(text), key=re.Match.start, default=None)
    if last is not None and last.group(1).strip() in _OPENERS:
        # The formula starts on the line after its delimiter.
        return re.compile(r"([^\n]+)").search(text, last.end()) or last
    return last


def _boxed(text: str, start: int) -> str | None:
    """Extract the content of the box at `start`; None if it is empty or not closed."""
    opening = start + (len(r"\boxed") if text.startswith(r"\boxed", start) else len(r"\fbox"))
    after = text[opening : opening + 64]
    if not after.lstrip().startswith("{"):
        unbraced = _UNBRACED.match(after)
        return (unbraced.group(1) or unbraced.group(2)) if unbraced else None
    first = text.index("{", opening) + 1
    depth = 1
    for brace in _BRACE.finditer(text, first):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return _undelimited(text[first : brace.start()])
    return None


def _undelimited(line: str) -> str | None:
    r"""Strip markdown, quotes, $ $, \( \) and \[ \] from a line; extract a sentence's only formula."""
    box = max(line.rfind(r"\boxed{"), line.rfind(r"\fbox{"))
    if box >= 0:
        return _boxed(line, box)
    text = _FULL_STOP.sub("", line.strip().strip("*`")).strip()
    formulas = list(_DELIMITED.finditer(text))
    if len(formulas) == 1 and not re.search(r"[\d\\]", _DELIMITED.sub("", text)):
        return (formulas[0].group(1) or formulas[0].group(2) or "").strip() or None
    for opener, closer in zip(_OPENERS, _CLOSERS, strict=True):
        text = text.removeprefix(opener).removesuffix(closer).strip()
    return text or None
