r"""Brace the arguments of TeX commands, exponents and subscripts: \frac\pi 2 becomes \frac{\pi}{2}, E_1 becomes E_{1}.

Spellings that print alike then are equal texts, and the parser needs no rules for missing braces.
"""

from __future__ import annotations

import re

MAX_NESTING = 40
"""Deepest nesting that is read; far more than answer_limits allows."""

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, "^": 1, "_": 1}
_TRANSPARENT = {r"\underline", r"\boldsymbol", r"\bm", r"\mathbf", r"\mathit", r"\mathsf", r"\emph", r"\textcolor"}
"""Commands that change only the looks of their argument."""


def brace_arguments(text: str) -> str:
    """Brace all arguments, and drop braces that group nothing; text with unmatched braces is returned as it is."""
    try:
        return _Reader(text).read_all()
    except (IndexError, ValueError):
        return text


class _Reader:
    """A cursor over tokens. Methods raise IndexError at the end of the text, ValueError for what is not TeX."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        self._at = 0
        self._nesting = 0

    def read_all(self) -> str:
        text = self._until(None)
        if self._at != len(self._tokens):
            raise ValueError("an unmatched brace")
        return text

    def _until(self, end: str | None) -> str:
        """Read to the token `end`, which is consumed, or to the end of the text."""
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise ValueError("nested too deeply")
        parts: list[str] = []
        before = ""
        while self._at < len(self._tokens) if end is None else self._tokens[self._at] != end:
            token = self._tokens[self._at]
            if token == "}":
                raise ValueError("an unmatched brace")
            parts.append(self._unit(before))
            before = token if not token.isspace() else before
        self._at += end is not None
        self._nesting -= 1
        return "".join(parts)

    def _unit(self, before: str) -> str:
        """Read a token with its arguments. A group after a command is its argument; any other one is only layout."""
        token = self._next()
        if token in _ARGUMENTS:
            return self._with_arguments(token, before)
        if token in _TRANSPARENT:
            return self._argument("")
        if token != "{":
            return token
        inner = self._until("}")
        if before == "}" or (before.startswith("\\") and before[1:].isalpha()):
            return f"{{{inner}}}"
        raised = self._at < len(self._tokens) and self._tokens[self._at] in "^_"
        return f"({inner})" if raised and len(_TOKEN.findall(inner)) > 1 else inner

    def _with_arguments(self, token: str, before: str) -> str:
        text, command = token, (r"\log" if before == r"\log" else token)
        if token == r"\sqrt" and self._peek() == "[":
            self._next()
            degree = self._until("]")
            text += f"[{degree}]"
        for _ in range(_ARGUMENTS[token]):
            text += f"{{{self._argument(command)}}}"
        return text

    def _argument(self, command: str) -> str:
        """Read one argument, without its braces. A whole number may follow ^ and _, single digits all else."""
        token = self._peek()
        self._next()
        if token == "{":
            return self._until("}").strip()
        if token == "(" and command in ("^", r"\sqrt"):
            return self._until(")").strip()
        if token in _ARGUMENTS:
            return self._with_arguments(token, "")
        if token in "+-" and command in "^_":
            return token + self._argument(command)
        if token[0].isdigit() and command not in ("^", "_"):
            self._at -= 1
            self._tokens[self._at : self._at + 1] = [token[0], *([token[1:]] if token[1:] else [])]
            return self._next()
        return token

    def _peek(self) -> str:
        while self._tokens[self._at].isspace():
            self._at += 1
        return self._tokens[self._at]

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]
