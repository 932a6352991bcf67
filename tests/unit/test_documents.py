"""README and docs: every link and page resolves, and figures are those of the files of results."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "recipes/*/*.md", "patches/*.md", "benchmarks/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)
README_WORDS = 900
QUICKSTART = ROOT / "recipes" / "quickstart" / "RESULTS.md"


class SiteLoader(yaml.SafeLoader):
    """Read mkdocs.yml, whose extensions are named as Python objects, without importing them."""


SiteLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: name)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


def links(page: Path) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def table_after(path: Path, heading: str) -> list[list[str]]:
    """Cells of the first table behind a heading, its head left out."""
    text = path.read_text().partition(f"\n## {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_site_and_in_its_table_of_contents():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=SiteLoader)

    def leaves(entry) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(below)

    named = list(leaves(config["nav"]))
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md"))
    start = set(links(DOCS / "index.md"))
    assert {name for name in named if name != "index.md" and name not in start} == set()


def test_the_readme_is_short_and_names_every_page():
    readme = ROOT / "README.md"
    assert len(readme.read_text().split()) <= README_WORDS
    named = {link.partition("#")[0] for link in links(readme)}
    assert not {f"docs/{path.name}" for path in DOCS.glob("*.md")} - named - {"docs/status.md"}


def test_figures_of_the_readme_are_those_of_the_quickstarts_results():
    measured = {cells[0]: [cells[1], *cells[3:5], cells[-1]] for cells in table_after(QUICKSTART, "Rows over seeds")}
    readme = (ROOT / "README.md").read_text()
    rows = {cells[0]: cells[1:] for cells in table_after(ROOT / "README.md", "Results")}
    assert len(rows) >= 4 and rows == {name: measured[name] for name in rows}
    means = [cells[0].split()[0] for cells in rows.values()]
    names = ", ".join(f'"{row}"' for row in rows)
    assert f"x-axis [{names}]" in readme and f"bar [{', '.join(means)}]" in readme
    first = readme.partition("```")[0]
    told = dict(zip(rows, means, strict=True))
    assert f"{told['bridge-only-1h']} %" in first and f"{told['direct-grpo']} %" in first
    assert rows["bridge-only-1h"][1] in first and rows["direct-grpo"][1] in first
    assert rows["bridge-only-1h"][2] == rows["direct-grpo"][2], "as many verifier calls"


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stderr
    pages = {path.relative_to(tmp_path).parent.name for path in tmp_path.glob("*/index.html")}
    assert pages == {page.stem for page in DOCS.glob("*.md")} - {"index"}


def test_differences_of_the_readme_are_those_of_the_quickstarts_results():
    results = QUICKSTART.read_text()
    told = re.findall(r"^\| \S+ - \S+ \|.*\|$", (ROOT / "README.md").read_text().partition("## Results")[2], re.M)
    assert len(told) >= 3 and all(line in results for line in told)


def test_times_and_sizes_are_those_that_were_measured():
    benchmarks, tests = ((ROOT / name / "RESULTS.md").read_text() for name in ("benchmarks", "tests"))
    row = r"^\| four rows, 14 stages \|[^|]*\| ([\d.]+) min \|.*\| \*\*([\d.]+) min\*\* \|$"
    alone, side_by_side = re.search(row, benchmarks, re.M).groups()
    fastest = re.search(r"building the environment \(about (\d+) minutes\)", benchmarks)[1]
    slowest = re.search(r"after the environment, which took (\d+) min (\d+) s", benchmarks)
    environment = f"{fastest} to {int(slowest[1]) + round(int(slowest[2]) / 60)}"
    cuda, cpu = re.search(r"`\.venv` \| ([\d.]+) GB; ([\d.]+) GB with the CPU build", tests).groups()
    for page in (ROOT / "README.md", ROOT / "recipes" / "quickstart" / "README.md"):
        text = " ".join(page.read_text().split())
        for figure in (f"{alone} minutes", side_by_side, f"{environment} minutes", f"{cpu} GB", cuda):
            assert figure in text, (page, figure)
    said = yaml.safe_load((ROOT / "recipes" / "quickstart" / "quickstart.yaml").read_text())["measured"]
    assert all(figure in said for figure in (f"{alone} minutes", side_by_side, f"{cpu} GB"))


def test_times_of_shrunk_recipes_are_those_that_were_measured():
    rows = dict(
        re.findall(r"^\| ([\w.-]+)[^|]*\| \d+ \| \d+ \| (\d+) \|$", (ROOT / "tests" / "RESULTS.md").read_text(), re.M)
    )
    told = {"qwen3": rows["qwen3-1.7b-from-8b-24gb"], "llama": rows["llama3.1-8b-from-70b"]}
    for folder, seconds in told.items():
        for page in (ROOT / "recipes" / folder / "README.md", DOCS / "sizing.md"):
            assert f"{seconds} s" in page.read_text(), (page, seconds)
