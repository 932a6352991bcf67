"""The HTML report as a file: nothing from elsewhere, nothing unescaped, readable colours."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import combinations
from xml.etree import ElementTree

import pytest

from tests.support.report_rows import HOSTILE, ledger, result, whole_report
from verl_s2d.recipe.rows import ROWS
from verl_s2d.report.page import typeset
from verl_s2d.report.plots import INK, PAPER, SERIES, in_order_of_method, panel_plot
from verl_s2d.report.write import Report, RowResult, build_report
from verl_s2d.stages.shared import panels

STYLE = files("verl_s2d.report").joinpath("page.css").read_text()


class Page(HTMLParser):
    """Tags with their attributes, and texts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, *tags):
        return [attributes for tag, attributes in self.tags if tag in tags]


def written(report: Report, directory) -> str:
    report.write(directory)
    return (directory / "report.html").read_text()


def images(page: Page) -> list[str]:
    """The SVG of every image; one that is not part of the page fails."""
    prefix = "data:image/svg+xml;base64,"
    sources = [image["src"] for image in page.named("img")]
    assert all(source.startswith(prefix) for source in sources)
    return [base64.b64decode(source.removeprefix(prefix), validate=True).decode() for source in sources]


def test_it_asks_for_nothing_and_runs_nothing(tmp_path):
    text = written(whole_report(), tmp_path)
    page = Page(text)
    assert len(images(page)) >= 15
    for element in (element for svg in images(page) for element in ElementTree.fromstring(svg).iter()):
        tag, attributes = element.tag.rpartition("}")[2], {k.rpartition("}")[2]: v for k, v in element.items()}
        assert tag not in ("script", "image", "foreignObject", "a") and not any(k.startswith("on") for k in attributes)
        assert attributes.get("href", "#").startswith("#"), (tag, attributes)
        assert "url(" not in str(attributes).replace("url(#", "")
    assert not page.named("script", "iframe", "object", "embed", "form", "foreignObject")
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("href", "src", "action", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in STYLE and "@import" not in STYLE
    (policy,) = [m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy and "http" not in policy


def test_it_is_whole(tmp_path):
    text = written(whole_report(), tmp_path)
    page = Page(text)
    words = " ".join(page.texts)
    for expected in (
        *(
            "In short",
            "Warnings",
            "Rows",
            "Gains and costs",
            "Flow",
            "Paired differences",
            "Accuracy by level",
            "Answers",
            "Reinforcement learning",
        ),
        *("Distillation", "Responses and updates", "Stages", "This run", "published", "61.5", "56.2 ± 7.5", "10,240"),
        *("2a: KL(teacher ‖ student)", "2b: KL(student ‖ teacher)", "Mass on the other's top k", "Truncated responses"),
        *("verl-s2d run recipe.yaml", "0.9.1", "not finite: s2d/skipped_updates"),
    ):
        assert expected in words, expected
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for a in page.named("a")} <= set(ids)
    assert len(page.named("caption")) == len(page.named("table")) and len(page.named("figcaption")) >= 15
    assert len(page.named("img")) == len(page.named("figcaption")) and all(a["alt"] for a in page.named("img"))
    assert dict(page.tags[0][1])["lang"] == "en" if page.tags[0][0] == "html" else False


def test_sections_without_data_are_absent(tmp_path):
    text = written(build_report([RowResult("x", 0, result(1, 2), ledger())]), tmp_path)
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert titles == ["In short", "Rows", "Answers", "This run"]
    alarms = written(whole_report(alarms=False), tmp_path)
    assert "Warnings" not in alarms


def test_numbers_have_the_minus_of_mathematics_and_names_keep_their_dash():
    given = "half - direct-grpo -5.7 (-12.6 to -1.5) +- 2 2026-11-29 opd-1h || x"
    assert typeset(given) == "half − direct-grpo −5.7 (−12.6 to −1.5) ± 2 2026-11-29 opd-1h ‖ x"


def test_stages_stand_in_the_order_of_the_method():
    report = whole_report(rows=("half",), alarms=False)
    assert [stage["name"] for stage in report.data["stages"][:3]] == ["student-rl-half", "warmup-half", "opd-half"]
    assert [s["name"] for s in in_order_of_method(report.data["stages"])][:3] == [
        "warmup-half",
        "opd-half",
        "student-rl-half",
    ]
    plot = next(p for s in report.sections for p in s.plots if p.name == "length")
    assert plot.about.index("opd-half") < plot.about.index("student-rl-half")


def test_every_text_is_escaped(tmp_path):
    text = written(whole_report(HOSTILE), tmp_path)
    page = Page(text)
    assert not page.named("script") and len(images(page)) == len(page.named("figure"))
    assert text.count("</style>") == 1 and text.count("</title>") == 1
    assert not [a for _, a in page.tags if "onerror" in a]
    words = "".join(page.texts)
    for expected in ("recipe", "model", "cold-student", "opd-more", "math", "0.9.1"):
        assert f"{expected}{HOSTILE}" in words, expected
    for plot in (tmp_path / "plots").iterdir():
        assert "<script" not in plot.read_text() and "<img" not in plot.read_text()


def test_it_stays_small(tmp_path):
    """The paper's rows on three sets and seeds: more lines than any plot was made for."""
    rows = tuple(ROWS)[:11]
    text = written(whole_report(sets=("math500", "aime24", "aime25"), rows=rows, seeds=(0, 1, 2), steps=600), tmp_path)
    assert len(text.encode()) < 1_500_000


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return sum(
        w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4)
        for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def in_the_dark(colour: str) -> str:
    """A colour of a plot after the page's filter, invert(.9) and then hue-rotate(180deg) (Filter Effects, 12.5)."""
    assert "@media screen and (prefers-color-scheme: dark)" in STYLE
    assert STYLE.count("figure img { filter: invert(.9) hue-rotate(180deg); }") == 1
    red, green, blue = (0.9 - 0.8 * int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    grey = 0.426 * red + 1.430 * green + 0.144 * blue
    return "#" + "".join(f"{round(255 * min(1, max(0, grey - part))):02x}" for part in (red, green, blue))


def lab(colour: str) -> tuple[float, float, float]:
    """CIELAB of an sRGB colour, white point D65."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    x = (0.4125 * red + 0.3576 * green + 0.1804 * blue) / 0.9505
    y = 0.2127 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9503 * blue) / 1.0888
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def test_stages_that_meet_in_a_plot_have_colours_that_differ():
    """1, 2a, 2b, 3 and direct GRPO; 2.3 is a just noticeable difference."""
    assert min(math.dist(lab(a), lab(b)) for a, b in combinations(SERIES[:5], 2)) > 10 * 2.3


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_from_their_background(scheme):
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[scheme]))
    for text in ("ink", "quiet", "link"):
        assert contrast(colours[text], colours["paper"]) >= 4.5, text
    for text in ("ink", "warn"):
        assert contrast(colours[text], colours["warn-paper"]) >= 4.5, text
    for colour in (INK, *SERIES):
        shown, paper = (in_the_dark(c) if scheme else c for c in (colour, PAPER))
        assert contrast(shown, paper) >= 4.5, colour


def test_a_curve_without_a_name_of_its_own_has_its_stages_in_the_legend():
    curve = {"steps": [1, 2], "values": [1.0, 4.0]}
    curves = {panels.LENGTH.name: {"": curve, "limit of the prefix": curve}}
    data = {"seeds": [0], "stages": [{"name": "opd-all", "place": 0, "curves": curves}]}
    about = panel_plot(data, panels.LENGTH, ["opd-all"]).about
    assert "opd-all: 1 → 4; opd-all, limit of the prefix: 1 → 4." in about
