"""Hide keys, tokens and passwords in manifests, plans, reports and messages.

Hidden are values of environment variables and recipe keys with a secret's name, values assigned to such a name in text
(`api_key: ...`), credentials in URLs, and tokens of well-known shapes. Processes get the real values, and a log holds
whatever its process prints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

HIDDEN = "<hidden>"
_SHORTEST = 8
"""Shorter values are hidden only where they are assigned: elsewhere, ordinary words would contain them."""

_ALWAYS = {
    "password",
    "passwd",
    "passphrase",
    "secret",
    "secrets",
    "credential",
    "credentials",
    "apikey",
    "authorization",
}
_KINDS_OF_KEY = {"api", "access", "secret", "private", "auth", "account", "encryption", "signing", "ssh", "license"}
_KINDS_OF_TOKEN = {
    "auth",
    "access",
    "api",
    "hf",
    "hub",
    "huggingface",
    "github",
    "gitlab",
    "bearer",
    "refresh",
    "session",
}
_KINDS_OF_TOKEN |= {"wandb", "security", "secret", "bot", "slack", "swanlab", "mlflow", "vault", "bearer"}
_NOT_VALUES = {"none", "null", "true", "false", HIDDEN}

_TRIGGER = re.compile(
    r"(?i)token|key|secret|passw|passphrase|credential|authorization|bearer|basic|://|hf_|sk-|gh[pousr]_|akia|xox|glpat"
)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)[^/\s@'\"]+@")
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w\-]{10,}"
    r"|glpat-[\w\-]{16,})"
)
_SCHEME = re.compile(r"(?i)\b(bearer|basic)(\s+)[\w.~+/\-]{12,}=*")
_ASSIGNED = re.compile(
    r"(?i)([\w.\-]*(?:token|key|secret|passw|passphrase|credential|auth|pat)\w*)"
    r"""(["']?\s*[:=]\s*)(?:"([^"]+)"|'([^']+)'|([^\s"',;&}\])]+))"""
)


def secret_name(name: str) -> bool:
    """Report whether a name is a secret's. `eos_token`, `prompt_key` and `max_tokens` are not."""
    last = re.split(r"[.:/]", name)[-1]
    words = [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", last)]
    if not words:
        return False
    pairs = set(pairwise(words))
    if _ALWAYS & set(words) or any(second == "key" and first in _KINDS_OF_KEY for first, second in pairs):
        return True
    if words[-1] == "token":
        # A name in capitals is an environment variable: no tokenizer keeps its special tokens there.
        return len(words) == 1 or words[-2] in _KINDS_OF_TOKEN or last.isupper()
    return last.isupper() and words[-1] in {"key", "auth", "pat"}


def secrets_in(data: Any, name: str = "") -> Iterator[str]:
    """Yield the values in `data` that have a secret's name, and the passwords in its URLs."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from secrets_in(value, str(key))
    elif isinstance(data, list | tuple):
        for value in data:
            yield from secrets_in(value, name)
    elif isinstance(data, str):
        if secret_name(name) and _is_value(data):
            yield data
        yield from (match[1] for match in re.finditer(r"://[^/\s:@'\"]*:([^/\s@'\"]+)@", data))


_remembered: set[str] = set()


def remember(values: Iterable[str]) -> None:
    """Hide these values from now on, in this process."""
    _remembered.update(values)


class Redactor:
    """Hide secrets in text and data.

    Args:
        values: secrets known by their value.
    """

    def __init__(self, values: Iterable[str]):
        self._said: dict[tuple[str, str], str] = {}
        self._known = _any_of(frozenset(v for v in values if len(v) >= _SHORTEST))

    def text(self, text: str) -> str:
        """Return the text with its secrets replaced."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        if not _TRIGGER.search(text):
            return text
        text = _URL.sub(rf"\1{HIDDEN}@", text)
        text = _SHAPES.sub(HIDDEN, text)
        text = _SCHEME.sub(rf"\1\2{HIDDEN}", text)
        return _ASSIGNED.sub(_assigned, text)

    def data(self, value: Any, name: str = "") -> Any:
        """Copy JSON-able data with its secrets replaced; numbers, None and booleans stay, whatever their name."""
        if isinstance(value, Mapping):
            return {key: self.data(entry, str(key)) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(entry, name) for entry in value]
        if isinstance(value, str):
            # Cached: every stage asks about the same settings and arguments.
            if (name, value) not in self._said:
                self._said[name, value] = HIDDEN if secret_name(name) and _is_value(value) else self.text(value)
            return self._said[name, value]
        return value


def current() -> Redactor:
    """Return the redactor for the secrets of this process's environment and recipe."""
    return Redactor({*_remembered, *(v for k, v in os.environ.items() if secret_name(k) and _is_value(v))})


def _is_value(value: str) -> bool:
    """Report whether a value can be a secret: not a switch, a number, a reference to the environment or a file."""
    plain = value.strip().lower()
    return not (
        plain in _NOT_VALUES or len(plain) < 4 or plain.startswith("${") or _number(plain) or os.path.exists(value)
    )


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _assigned(match: re.Match) -> str:
    name, between, *values = match.groups()
    value = next(v for v in values if v is not None)
    if not secret_name(name) or not _is_value(value):
        return match[0]
    return match[0][: len(name) + len(between)] + HIDDEN


@lru_cache(maxsize=8)
def _any_of(values: frozenset[str]) -> re.Pattern | None:
    # Longest first: a value may be the beginning of another.
    return re.compile("|".join(map(re.escape, sorted(values, key=len, reverse=True)))) if values else None
