r"""Responses that are meant to hang, crash or fool a verifier: by kind, made from a random.Random."""

from __future__ import annotations

import random
from collections.abc import Callable

TRUTHS = [
    *("34", "-7", r"\frac{14}{3}", "0.15", "10080", r"\frac{3\sqrt{3}}{4}", r"288 \pi", "p - q", "2k+2", "x^3+3x-6"),
    *(r"\cot x", "6 - 5i", "1,-2", r"3 \pm 2 \sqrt{2}", r"\{1\pm\sqrt{5},-2\}", "(6,31,-1)", "(3,4]", "x=5", "52_8"),
    *(r"(-\infty, 2) \cup (3, \infty)", r"x \in [-2,7]", "y = 2x + 3", r"90^\circ", r"15\mbox{ cm}^2", r"\text{east}"),
    *(r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", "5x - 7y + 11z + 4 = 0", r"x^8+x^7+x^6+x^5+x^4+x^3+x^2+x+1"),
]

TOKENS = [
    *(
        r"\frac",
        r"\sqrt",
        r"\left(",
        r"\right)",
        r"\pi",
        r"\infty",
        r"\cup",
        r"\in",
        r"\pm",
        r"\cdot",
        r"\times",
        r"\text{",
    ),
    *(
        r"\sin",
        r"\log",
        r"\ln",
        r"\binom",
        r"\sum_{k=1}^{n}",
        r"\int_0^1",
        r"\lim_{x\to 0}",
        r"\prod",
        r"\begin{pmatrix}",
    ),
    *(
        r"\end{pmatrix}",
        r"\\",
        "&",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "|",
        "^",
        "_",
        "!",
        "=",
        "<",
        r"\le",
        r"\ge",
        ",",
        ";",
    ),
    *(
        "+",
        "-",
        "*",
        "/",
        ":",
        "%",
        r"\%",
        "$",
        r"\$",
        " ",
        "0",
        "1",
        "2",
        "7",
        "12",
        "999",
        "0.5",
        "1e9",
        "x",
        "y",
        "n",
        "e",
    ),
    *(
        "i",
        r"\theta",
        r"\overline{3}",
        r"^\circ",
        r"\boxed{",
        r"\operatorname{eye}",
        r"\det",
        r"\gcd",
        r"\lfloor",
        r"\rfloor",
    ),
    *(
        r"\{",
        r"\}",
        r"\emptyset",
        r"\mathbb{R}",
        r"\setminus",
        r"\cap",
        r"\neg",
        r"\mod",
        r"\arcsin",
        r"\vec{a}",
        "\x00",
    ),
]

Kind = Callable[[random.Random], str]


def boxed(text: str) -> str:
    return rf"Therefore \boxed{{{text}}}"


def deep(r: random.Random) -> str:
    """Nesting of one construct, or of several in turn."""
    depth = r.choice([5, 12, 16, 30, 100, 1000, 3000])
    pairs = [
        ("{", "}"),
        ("(", ")"),
        (r"\sqrt{", "}"),
        (r"\frac{1}{1+", "}"),
        ("x^{", "}"),
        (r"\left[", r"\right]"),
        ("|", "|"),
    ]
    chosen = r.choices(pairs, k=r.choice([1, 1, 2]))
    middle = r.choice(["1", "x", "", "1+1"])
    opened = "".join(chosen[n % len(chosen)][0] for n in range(depth))
    closed = "".join(chosen[n % len(chosen)][1] for n in reversed(range(depth)))
    return boxed(opened + middle + (closed if r.random() < 0.8 else ""))


def long(r: random.Random) -> str:
    """10^6 characters: before the answer, in it, after it."""
    size = 1_000_000
    filler = r.choice(["9", "x+", "(", "{", r"\frac", "answer:", r"\boxed{", " ", "\n", "$", r"\text{", "é", "1,"])
    text = filler * (size // len(filler))
    return r.choice([boxed(text), text + boxed("34"), boxed("34") + text, "Answer: " + text, text])


def tower(r: random.Random) -> str:
    """Exponents of exponents."""
    height, base = r.randint(2, 8), r.choice(["2", "9", "99", "x", "e", r"\pi", "0.5", "-3", "(1+x)"])
    text = base
    for _ in range(height):
        text = r.choice([f"{r.choice(['9', '10', '99', base])}^{{{text}}}", f"({text})^{{9}}", f"({text})!"])
    return boxed(text)


def endless(r: random.Random) -> str:
    """Boxes without end or content, and many of them."""
    times = r.choice([1, 2, 50, 2000])
    texts = [r"\boxed{" * times, r"\boxed{1}" * times + r"\boxed{", r"\boxed" * times, r"\boxed{}" * times]
    texts += [
        r"\boxed{\boxed{" * times + "34",
        "Answer:" * times,
        "Answer:\n" * times,
        r"\boxed{\}" * times,
        "",
        " ",
        r"\boxed",
    ]
    return r.choice(texts)


def control(r: random.Random) -> str:
    """Control, private, unassigned and half characters."""
    alphabet = (
        "\x00\x01\x07\x08\x1b\x7f\x85\u200b\u202e\u2028\ud800\udfff\ufffe\ufffd\ue000\U0010ffff\U0001f600٣४²½Ⅷ0134x^{}"
    )
    return r.choice([boxed, lambda t: f"Answer: {t}", str])("".join(r.choices(alphabet, k=r.randint(1, 40))))


def bomb(r: random.Random) -> str:
    """Short formulas that take sympy for ever, or all memory."""
    n = r.choice([50, 300, 999, 5000, 9999, 10**6, 10**9, 10**12])
    letter = r.choice("xyabk")
    texts = [
        f"{n}!",
        f"({n}!)!",
        rf"\binom{{{n}}}{{{n // 2}}}",
        f"{letter}^{{{n}}} - 1",
        f"({letter}+y+z+1)^{{{min(n, 9999)}}}",
        f"{n}^{{{n}}}",
        rf"\sqrt[{n}]{{{n + 1}}}",
        rf"\log_{{2}} {{{n}}}^{{{n}}}",
        rf"\sum_{{k=1}}^{{{n}}} \frac{{1}}{{k}}",
        rf"\prod_{{k=1}}^{{{n}}} k",
        rf"\int_0^{{{n}}} e^{{-{letter}^{{{letter}}}}} d{letter}",
        rf"\operatorname{{eye}}({n})",
        rf"\operatorname{{ones}}({n},{n})",
        rf"\gcd({n}^{{{n}}}, 3)",
        rf"\Gamma({n})",
        "+".join(rf"\sin({k}{letter})\cos(\sqrt{{{k}}}{letter})" for k in range(1, r.randint(5, 16))),
        "+".join(rf"\sqrt{{{k}+\sqrt{{{k + 1}}}}}" for k in range(2, r.randint(5, 30))),
        r"\cdot".join(f"({letter}+{k})^{{{k}}}" for k in range(1, r.randint(5, 40))),
        r"\frac{1}{" + "+".join(rf"\sqrt[{k}]{{{k}}}" for k in range(2, r.randint(4, 20))) + "}",
        ",".join(str(k) for k in range(r.randint(5, 300))),
        r"\cup".join(f"({k}, {k + 1})" for k in range(r.randint(5, 80))),
        r"\pm".join("1234567")[: r.randint(5, 30)],
        r"\begin{pmatrix}"
        + r"\\".join("&".join(f"{letter}^{i * j}" for i in range(9)) for j in range(9))
        + r"\end{pmatrix}",
        rf"{letter}^{{5}} - {letter} - 1 = \sin({letter}) y^{{{min(n, 99)}}}",
        rf"0.\overline{{{'142857' * r.randint(1, 100)}}}",
        "-" * r.randint(2, 900) + "5",
        "3" + "!" * r.randint(2, 60),
        "1" + "/2" * r.randint(2, 400),
        "2" + "^2" * r.randint(2, 200),
        rf"e^{{e^{{e^{{{n}}}}}}}",
        rf"\tan({n}^{{99}})",
        rf"{letter}_{{{n}}}^{{{letter}_{{{n}}}}}",
    ]
    return boxed(r.choice(texts))


def code(r: random.Random) -> str:
    """Text that would do something if it were run as Python."""
    run = r.choice(
        [
            "__import__('os').system('touch {marker}')",
            "open('{marker}','w').write('x')",
            "exec(\"import os; os.mkdir('{marker}')\")",
            "().__class__.__bases__[0].__subclasses__()",
            "exit()",
            "os._exit(0)",
        ]
    )
    shapes = [
        *("{}", r"\text{{{}}}", r"x_{{{}}}", r"\mathrm{{{}}}", r"\operatorname{{{}}}(3)", "f({})", "1+{}"),
        *(r"\var{{{}}}",),
    ]
    shapes += [
        r"\variable{{{}}}",
        r"\sum_{{{}=1}}^{{9}} {}",
        r"\frac{{{}}}{{2}}",
        "'+{}+'",
        '{{"died": -9}}\n{}',
        "\n{}\n",
    ]
    shape = r.choice(shapes)
    return boxed(shape.replace("{}", run).replace("{{", "{").replace("}}", "}"))


def backtracking(r: random.Random) -> str:
    """Runs of what the patterns here and in the libraries repeat over."""
    units = [
        *(" ", "\t ", "1,", "1 ", ",000", r"\text{", r"\text{ }", "$", "$$ ", r"\(", "(1", "a)_{", "x="),
        *("and ", r"\ ", "^("),
    ]
    units += [
        *("1/", r"\frac1", r"\frac{", r"\sqrt(", r"\mbox{a}^", "%", ".", "-", "answer ", r"\circ", "{,}"),
        *(r"\overline{1}", "_1"),
    ]
    text = "".join(
        r.choice(units[n : n + 2] or units) * r.choice([3, 40, 300, 900]) for n in r.choices(range(len(units)), k=2)
    )
    return r.choice(
        [boxed(text), boxed(text[:990]), f"Answer: {text}", f"Answer: {text[:990]}", f"{text}\nAnswer: 3 {text[:80]}"]
    )


def soup(r: random.Random) -> str:
    """Random tokens of TeX."""
    text = "".join(r.choices(TOKENS, k=r.choice([3, 6, 12, 30, 80])))
    return r.choice([boxed(text), boxed(text), "Answer: " + text])


def mutated(r: random.Random) -> str:
    """A ground truth with a few edits."""
    text = r.choice(TRUTHS)
    for _ in range(r.randint(1, 4)):
        at, token = r.randint(0, len(text)), r.choice(TOKENS)
        text = r.choice(
            [text[:at] + token + text[at:], text[:at] + text[at + 1 :], text[:at] + text, text + text[at:]]
        )[:2000]
    return boxed(text)


KINDS: dict[str, Kind] = {
    f.__name__: f for f in (deep, long, tower, endless, control, bomb, code, backtracking, soup, mutated)
}
