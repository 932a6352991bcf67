r"""Spell answers in one way: Unicode as TeX, synonyms unified, commands without meaning removed."""

from __future__ import annotations

import re
import unicodedata

from verl_s2d.verifiers.math.braces import brace_arguments

_CHARACTERS: dict[str, str] = {
    **{"−": "-", "–": "-", "‐": "-", "’": "'", "′": "'", "，": ",", "（": "(", "）": ")", "％": "%", "：": ":"},
    **{"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u200b": "", "\ufeff": "", "~": " ", "\n": " ", "\t": " "},
    **{"∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "±": r"\pm ", "√": r"\sqrt "},
    **{"≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "≠": r"\ne "},
    **{"≈": r"\approx ", "°": r"^{\circ}", "˚": r"^{\circ}", "º": r"^{\circ}", "¢": r"\text{ cents}", "€": "", "£": ""},
    "ℝ": r"\mathbb{R}",
}
for _letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ":
    _case, _name = unicodedata.name(_letter).removeprefix("GREEK ").split(" LETTER ")
    _name = {"LAMDA": "LAMBDA"}.get(_name, _name)
    _CHARACTERS[_letter] = rf"\{_name.lower() if _case == 'SMALL' else _name.capitalize()} "
for _fraction in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞":
    _top, _bottom = unicodedata.normalize("NFKC", _fraction).split("\u2044")
    _CHARACTERS[_fraction] = rf"\frac{{{_top}}}{{{_bottom}}}"
_TABLE = str.maketrans(_CHARACTERS)
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+")

_SPACES = (re.compile(r"\s+"), " ")
_TEXT_COMMANDS = "mbox|hbox|mathrm|textrm|textbf|textit|textnormal|textsf|texttt|rm"
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|sqrt|log|ln|exp"
_SYNONYMS = [
    _SPACES,
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![A-Za-z])\.?"), ""),
    (re.compile(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\\[A-Za-z]+|.)"), ""),
    (re.compile(r"\\(?:color|textcolor)\s*\{[^{}]*\}"), r"\\textcolor"),
    # A thin space, or a comma in braces, groups digits; commas between other things separate.
    (re.compile(r"(?<=\d)(?:,\s*\\!\s*|\{,\}(?:\\!)?|\\,)(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\{)\d{1,3}(?:,\d{3})+(?=\})"), lambda m: m.group().replace(",", "")),
    (re.compile(r"(?<!\\)\\!\s*"), ""),
    (re.compile(r"(?<!\\)\\[,;:>$ ]|\{,\}"), lambda m: {"{,}": ",", r"\$": "$"}.get(m.group(), " ")),
    (re.compile(r"\\(?:quad|qquad|enspace|thinspace)(?![A-Za-z])"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom"), r"\\binom"),
    (re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{"), r"\\text{"),
    # Letters in upright type are letters, unless they stand where a unit would.
    (re.compile(r"(?<![\d})\s])\\text\{([A-Za-z])\}"), r"\1"),
    (re.compile(r"\\text\{\s*\(?\s*([-+]?\d[\d.,]*)\s*\)?\s*\}"), r"\1"),
    (re.compile(r"\\text\{\s*([,;])?\s*\}"), r"\1 "),
    (re.compile(r"\\text\{([^{}]*)\}\s*/\s*\\text\{\s*([^{}]*)\}"), r"\\text{\1/\2}"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\[lr](?:vert|Vert)(?![A-Za-z])|\\vert(?![A-Za-z])"), "|"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\degree(?![A-Za-z])|\^\s*\\circ|\^\s*\{\s*\\circ\s*\}"), r"^{\\circ}"),
    (re.compile(r"\\begin\{[bBvp]?matrix\}|\\begin\{array\}\{[^{}]*\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\{[bB]?matrix\}|\\end\{array\}"), r"\\end{pmatrix}"),
    (re.compile(r"[\(\[]\s*(\\begin\{pmatrix\})"), r"\1"),
    (re.compile(r"(\\end\{pmatrix\})\s*[\)\]]"), r"\1"),
    # Python, as models that have just run some write it.
    (re.compile(r"(?<![\w\\.])(?:np|numpy|math|sympy|sp)\.(?=[a-z])"), ""),
    (re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?=\s*\()"), r"\\\1"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\*"), r"\\cdot "),
    # 2e-05, as programs print it.
    (re.compile(r"(?<![\w.\\^])(\d+\.?\d*|\.\d+)[eE]([-+]?)0*(\d{1,3})(?!\w|\.\d)"), r"\1 \\times 10^{\2\3}"),
    (re.compile(r"(?<=10\^\{)\+"), ""),
]
_WORD = r"(?:and|or)"
_TEXT_WORD = re.compile(
    rf"\s*,?\s*\\text\{{\s*,?\s*({_WORD})\s*,?\s*\}}\s*,?\s*|\s*,\s*({_WORD})\s+|(?<=[\w}})])\s+({_WORD})\s+"
)
_NUMBERS_IN_TEXT = re.compile(r"\\text\{([-+\d.,\s]*\d[-+\d.,\s]*)\}")
_INEQUALITY = re.compile(r"[<>]|\\[lgn]e(?![A-Za-z])")


def spell(text: str) -> str:
    """Spell an answer in one way; `and` and `or` become commas, and \\land and \\lor between inequalities."""
    text = text.translate(_TABLE)
    text = _RAISED.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m.group()).replace("−", "-") + "}", text)
    text = _LOWERED.sub(lambda m: "_{" + unicodedata.normalize("NFKC", m.group()).replace("−", "-") + "}", text)
    for pattern, replacement in _SYNONYMS:
        text = pattern.sub(replacement, text)
    inequalities = _INEQUALITY.search(text)

    def conjunction(match: re.Match[str]) -> str:
        word = next(filter(None, match.groups()))
        return f" \\l{word} " if inequalities else ", "

    text = _TEXT_WORD.sub(conjunction, text).replace("$", "")
    text = _NUMBERS_IN_TEXT.sub(r"\1", text)
    text = brace_arguments(text)
    return _SPACES[0].sub(" ", text).strip()
