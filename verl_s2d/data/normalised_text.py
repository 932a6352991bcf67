"""Normalise problem texts for comparison: remove LaTeX's spacing, fonts and synonyms, case and punctuation."""

from __future__ import annotations

import re
import unicodedata

_LAYOUT = re.compile(
    r"\\\\"
    r"|\\(?:left|right|bigg?[lr]?|displaystyle|textstyle|limits|quad|qquad"
    r"|text(?:rm|bf|it|sf)?|math(?:rm|bf|it|sf)|mbox|operatorname|emph|rm|bf)(?![a-z])"
    r"|\\[,;:!\s()\[\]]"
    r"|\\?\$|~"
)
_SYNONYM = re.compile(r"\\(?:[dt]frac|[lc]dots|dots[cbmo]|leq|geq|neq)(?![a-z])")
_SYNONYMS = {"dfrac": "frac", "tfrac": "frac", "leq": "le", "geq": "ge", "neq": "ne"}
_DECORATION = re.compile(r"[\s{}\"“”„`?;。、]|\*\*")
# Between digits these are decimal points, lists and ratios; elsewhere they are punctuation.
_PUNCTUATION = re.compile(r"(?<!\d)[.,:]|[.,:](?!\d)")
_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W\d_{_IDEOGRAPHS}]+|\d+")


def canonical(text: str) -> str:
    r"""Remove layout from a problem's text; two problems with the same result count as the same.

    Operators, digits, factorials and primes are kept, so problems that differ by a sign or a number stay different.
    Texts that are equal up to white space have equal results.
    """
    return _PUNCTUATION.sub("", _DECORATION.sub("", _plain(text)))


def words(text: str) -> list[str]:
    """Split a text into runs of letters, runs of digits and single ideographs, in lower case, without symbols."""
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", " ".join(text.split())).casefold()
    return _SYNONYM.sub(_synonym, _LAYOUT.sub(" ", folded))


def _synonym(match: re.Match[str]) -> str:
    name = match.group()[1:]
    return "\\" + _SYNONYMS.get(name, "dots")
