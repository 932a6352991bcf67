"""The HTML report as a reader sees it, in a headless browser where there is one."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from tests.support.browser import NAMES, Browser, find_browser
from tests.support.report_rows import HOSTILE, whole_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_browser() is None, reason=f"no browser: none of {', '.join(NAMES)} is on PATH (apt-get install chromium)"
    ),
]

BOXES = """
[...document.querySelectorAll(%r)].map(element => {
  const box = element.getBoundingClientRect();
  return [box.left + scrollX, box.top + scrollY, box.right + scrollX, box.bottom + scrollY];
})
"""
OUTSIDE = """
[...document.body.querySelectorAll("*")]
  .filter(element => !element.closest(".scroll *, svg *"))
  .filter(element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(element => element.outerHTML.slice(0, 120))
"""
CUT_OFF = """
[...document.querySelectorAll("text")].filter(text => {
  const box = text.getBoundingClientRect(), whole = document.documentElement.getBoundingClientRect();
  return box.left < whole.left - 1 || box.right > whole.right + 1
    || box.top < whole.top - 1 || box.bottom > whole.bottom + 1;
}).map(text => text.textContent)
"""
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(find_browser(), tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """A report with every section, one of many seeds, and one whose every name is hostile."""
    made = {"plain": whole_report(), "seeds": whole_report(seeds=(0, 1, 2)), "hostile": whole_report(HOSTILE)}
    directories = {name: tmp_path_factory.mktemp(name) for name in made}
    for name, report in made.items():
        report.write(directories[name])
    return {name: directory / "report.html" for name, directory in directories.items()}


def pixels(browser: Browser) -> Image.Image:
    """The whole page as it looks now."""
    return Image.open(io.BytesIO(browser.screenshot())).convert("RGB")


def colours(image: Image.Image, box: list[float]) -> set[tuple[int, int, int]]:
    """The colours within a box."""
    part = image.crop(tuple(map(round, box)))
    return {colour for _, colour in part.getcolors(maxcolors=part.width * part.height)}


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", ["plain", "seeds", "hostile"])
def test_the_window_is_wide_enough(browser, reports, name, width):
    browser.open(reports[name], width=width)
    scrolled, shown = browser.evaluate(WIDTHS)
    assert scrolled == shown == width
    assert browser.evaluate(OUTSIDE) == []
    asked = [request for request in browser.requests if not request.startswith("data:image/svg+xml;")]
    assert asked == [reports[name].as_uri()] and browser.complaints == []


@pytest.mark.parametrize("name", ["plain", "seeds"])
def test_no_text_of_a_plot_is_cut_off(browser, reports, name):
    plots = sorted(reports[name].parent.glob("plots/*.svg"))
    assert len(plots) >= 15
    for plot in plots:
        browser.open(plot)
        assert browser.evaluate("document.querySelectorAll('text').length") > 3
        assert browser.evaluate(CUT_OFF) == [], plot.name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_section_and_plot_is_drawn(browser, reports, scheme):
    browser.open(reports["plain"], scheme=scheme)
    image = pixels(browser)
    paper = image.getpixel((2, 2))
    assert (min(paper) > 240) if scheme == "light" else (max(paper) < 60)
    sections, plots = (browser.evaluate(BOXES % selector) for selector in ("section", "figure img"))
    assert len(sections) == 13 and len(plots) >= 15
    for box in [*sections, *plots]:
        assert box[2] - box[0] > 250 and box[3] - box[1] > 60
        seen = colours(image, box)
        assert len(seen) > 20, box
        assert (0, 0, 0) not in seen, "what has no colour of the page is drawn black"


@pytest.mark.parametrize("width", [1400, 400])
def test_a_plot_is_enlarged_and_closed_again(browser, reports, width):
    browser.open(reports["plain"], width=width, height=900)
    before = browser.evaluate(BOXES % "#plot-score img")[0]
    browser.evaluate("document.querySelector('#plot-score > a').click()")
    shown = browser.evaluate(
        "(() => {const b = document.querySelector('#plot-score').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]})()"
    )
    assert shown == [0, 0, width, 900]
    image = browser.evaluate(BOXES % "#plot-score img")[0]
    assert image[2] - image[0] >= before[2] - before[0] and image[2] <= width
    assert browser.evaluate(OUTSIDE) == []
    browser.evaluate("document.querySelector('#plot-score .close').click()")
    assert browser.evaluate("getComputedStyle(document.querySelector('#plot-score')).position") == "static"


@pytest.mark.parametrize("width", [1400, 400])
def test_a_flow_is_drawn_in_order_and_within_the_window(browser, reports, width):
    browser.open(reports["plain"], width=width)
    boxes = browser.evaluate(BOXES % ".flows > div:last-child .lane:last-child li")
    assert len(boxes) == 4, "the student, 2a, 2b, RL"
    for before, after in pairwise(boxes):
        below, right = after[1] >= before[3], after[0] >= before[2]
        assert right if width == 1400 else below
    assert all(0 <= box[0] < box[2] <= width for box in boxes)


def test_nothing_is_ruled_twice(browser, reports):
    browser.open(reports["plain"])
    assert (
        browser.evaluate("getComputedStyle(document.querySelector('.flows > div:last-child')).borderBottomWidth")
        == "0px"
    )


def test_names_are_shown_and_not_run(browser, reports):
    browser.open(reports["hostile"])
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("[...document.images].every(image => image.closest('figure') && image.naturalWidth)")
    assert browser.evaluate("document.title") == f"recipe{HOSTILE}: report"
    assert browser.evaluate("document.querySelector('h1').textContent") == f"recipe{HOSTILE}"


def test_the_policy_would_stop_a_script_and_a_style(browser, reports, tmp_path):
    page = tmp_path / "report.html"
    text = reports["plain"].read_text()
    page.write_text(
        text.replace("<main>", "<main><script>document.title = 'owned'</script><p id=x style='color:red'>x")
    )
    browser.open(page)
    assert browser.evaluate("document.title") == "recipe: report"
    assert browser.evaluate("getComputedStyle(document.getElementById('x')).color") != "rgb(255, 0, 0)"
    assert len(browser.complaints) >= 2, "one for each"


def test_it_prints(browser, reports):
    browser.open(reports["plain"], scheme="dark")
    assert browser.pdf().startswith(b"%PDF")
    browser.open(reports["plain"], width=720, media="print", scheme="dark")
    scrolled, shown = browser.evaluate(WIDTHS)
    assert scrolled == shown
    assert min(pixels(browser).getpixel((2, 2))) > 240, "on white paper"
