r"""Extract the final answer from a response: its last box or boxes, its last line `Answer: ...`, or `#### 72`.

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
_ANSWER_LINE = re.compile(
    r"(?:^|(?<=[.!?]\s))[ \t>*_#`-]{0,12}(?i:(?:so|thus|hence|therefore),?[ \t]{1,4})?"
    r"(?i:(?:the[ \t]{1,4})?(?:final[ \t]{1,4})?answer)"
    r"[ \t]{0,8}[*_`]{0,4}[ \t]{0,8}:[ \t*_`]*(?:\n\s{0,8})?([^\n]+)",
    re.MULTILINE,
)
"""An answer line begins a line or a sentence, with or without markdown around its keyword."""
_HASHES = re.compile(
    r"^####[ \t]{0,8}([-+]?[ \t]?\\?\$?[ \t]?\d[\d,]*(?:\.\d+)?(?:/\d+)?[ \t]?\\?%?)\.?\s*\Z", re.MULTILINE
)
"""The last line of a solution of GSM8K. Headings of markdown begin alike, so only a number at the very end counts."""
_SENTENCE = re.compile(r"(?i)^(?:the\s+)?(?:final\s+)?answer\s+is:?\s*(?=\S)")
_POLITE = re.compile(r"\.\s*I hope (?:it|this) is correct\.?\s*$")
_PROSE_WORDS = 3
"""Words outside of formulas that make an answer line a sentence about an answer."""
_BETWEEN_BOXES = re.compile(
    r"(?:\s|[,;$&*-]|\\[\[\]()\\,;! ]|\\q?quad(?![A-Za-z])|\\text\{\s*,?\s*(?:and|or)?\s*\}|and\b|or\b){0,40}"
)
_CLAIMS_ELSE = re.compile(
    r"[\d\\]|(?i:\b(?:not|no|or|and|than|least|most|except|unless|maybe|either|neither|between|over|under)\b)"
)
"""What a sentence around a formula must not say for the formula to be the answer."""
MAX_BOXES = 32
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"\s{1,8}(-?\d[\d.,]{0,30}|[A-Za-z])(?![A-Za-z])|(-?\d[\d.,]{0,30})")
_DELIMITED = re.compile(r"\$\$?([^$]+)\$\$?|\\\(([^()]*(?:\([^()]*\)[^()]*)*)\\\)")
_FULL_STOP = re.compile(r"(?<!\\right)\.\s*$")
_OPENERS = (r"\[", "$$", "$", r"\(")
_CLOSERS = (r"\]", "$$", "$", r"\)")


def final_answer(response: str, form: Form) -> str | None:
    r"""Extract the final answer's text, without \boxed and math delimiters; None if there is none.

    Args:
        form: `boxed` reads the last \boxed{} (or \fbox{}), with those before it that only commas, `and` or `or`
            separate from it; `answer` the last line `Answer: ...`; `either` the later of the two, or a last line
            `#### 72`. A box counts more than a line in prose.
    """
    thinking = response.rfind(_END_OF_THINKING)
    if thinking >= 0:
        response = response[thinking + len(_END_OF_THINKING) :]
    text = response[-MAX_CHARACTERS:]
    if form == "either" and (hashes := _HASHES.search(text)):
        return hashes.group(1).strip()
    box = _last_box(text, len(text)) if form != "answer" else -1
    line = _last_answer_line(text, with_prose=box < 0) if form != "boxed" else None
    if line is not None and line.start() > box:
        # In output such as "**Answer:** $\boxed{5}$" the box is inside the line, so `box` is later.
        return _undelimited(line.group(1))
    return _boxes(text, box) if box >= 0 else None


def _last_box(text: str, end: int) -> int:
    return max(text.rfind(r"\boxed", 0, end), text.rfind(r"\fbox", 0, end))


def _last_answer_line(text: str, *, with_prose: bool) -> re.Match[str] | None:
    """Find the last answer line that is no prose; the last one of all if there is no other."""
    lines = list(_ANSWER_LINE.finditer(text))
    plain = [line for line in lines if not _is_prose(line.group(1))]
    last = plain[-1] if plain else lines[-1] if lines and with_prose else None
    if last is not None and last.group(1).strip() in _OPENERS:
        # The formula starts on the line after its delimiter.
        return re.compile(r"([^\n]+)").search(text, last.end()) or last
    return last


def _is_prose(line: str) -> bool:
    if r"\boxed{" in line or r"\fbox{" in line:
        return False
    line = _DELIMITED.sub(" ", _POLITE.sub("", _SENTENCE.sub("", line.strip())))
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+(?:\{[^{}]*\})?", " ", line))
    return len(words) >= _PROSE_WORDS


def _boxes(text: str, last: int) -> str | None:
    """Extract the content of the last box, after those of the boxes that belong to the same list."""
    contents, start = [_boxed(text, last)], last
    while contents[0] is not None and len(contents) < MAX_BOXES:
        before = _last_box(text, start)
        end = _end(text, before, start) if before >= 0 else None
        if end is None or not _BETWEEN_BOXES.fullmatch(text, end, start):
            break
        content = _boxed(text, before)
        if content is None:
            break
        contents.insert(0, content)
        start = before
    if contents[0] is None:
        return None
    return ", ".join(dict.fromkeys(contents))


def _end(text: str, start: int, limit: int) -> int | None:
    """Return the index after a box with braces, if it ends before `limit`."""
    opening = text.find("{", start, limit)
    if opening < 0 or text[start:opening].strip() not in (r"\boxed", r"\fbox"):
        return None
    depth = 0
    for brace in _BRACE.finditer(text, opening, limit):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.end()
    return None


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
        return _boxes(line, box)
    line = _POLITE.sub("", _SENTENCE.sub("", line.strip().strip("*`_")))
    text = _FULL_STOP.sub("", line.strip().strip("*`")).strip()
    formulas = list(_DELIMITED.finditer(text))
    if len(formulas) == 1 and not _CLAIMS_ELSE.search(_DELIMITED.sub("", text)):
        return (formulas[0].group(1) or formulas[0].group(2) or "").strip() or None
    for opener, closer in zip(_OPENERS, _CLOSERS, strict=True):
        text = text.removeprefix(opener).removesuffix(closer).strip()
    return text or None
