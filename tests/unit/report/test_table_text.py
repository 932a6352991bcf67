"""Tables on terminals of several widths and in a file: nothing is cut, no short cell is broken."""

from __future__ import annotations

import random
import re
import sys

import pytest

from tests.support.report_rows import whole_report
from verl_s2d.report.table_text import Column, Table, as_text, count_text, words

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PATH = "checkpoints/global_step_400/a-directory-that-no-line-may-break/model.safetensors"
SENTENCE = (
    "on-policy distillation on prompts of slice all, beta 1, at most 126 steps, then a rest that takes a second line"
)


def example(seed: int) -> Table:
    """A table of 14 columns, wider than any terminal: figures, names and sentences."""
    chosen = random.Random(seed)
    numeric = [f"{chosen.randrange(10**9):,} +- {chosen.randrange(99)}" for _ in range(48)]
    lines = [[f"teacher-rl-{i}h, 2 alike", SENTENCE, *numeric[12 * i : 12 * i + 12]] for i in range(4)]
    columns = [*words("stage", "does"), *(Column(f"teacher-scored tokens {i}") for i in range(12))]
    return Table("", columns, lines)


@pytest.fixture
def terminal(monkeypatch):
    def of_width(columns: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm-256color")

    return of_width


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("seed", range(3))
def test_a_terminal_gets_lines_of_its_width_with_whole_cells(terminal, width, seed):
    terminal(width)
    table = example(seed)
    text = COLOUR.sub("", as_text("A title", table))
    lines = text.split("\n")
    assert lines[0] == "A title" and max(map(len, lines)) <= width
    for line in table.lines:
        assert text.count(line[0]) == text.count(table.lines[0][0]) > 1, "each block begins with the heading"
        assert all(text.count(cell) == 1 for cell in line[2:])
    # The sentence is wrapped between its words.
    for word in SENTENCE.split():
        assert len(re.findall(rf"(?<!\S){re.escape(word)}(?!\S)", text)) >= 4


@pytest.mark.parametrize("width", [40, 80])
def test_a_path_longer_than_the_terminal_stays_whole(terminal, width):
    terminal(width)
    text = COLOUR.sub("", as_text(f"below {PATH}", Table("", words("file", "what"), [[PATH, "is damaged"]])))
    assert text.count(PATH) == 2 and "is damaged" in text and "…" not in text


def test_a_file_gets_a_line_a_row_and_no_colours(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = example(0)
    lines = as_text(table).split("\n")
    assert len(lines) == 1 + len(table.lines) and "\x1b" not in "".join(lines)
    for line, cells in zip(lines[1:], table.lines, strict=True):
        assert re.split(r"  +", line) == cells
    assert lines[0].index("does") == lines[1].index(SENTENCE)
    assert {line.rindex(" ") for line in lines[1:]} == {line.rindex("+- ") + 2 for line in lines[1:]}


def test_cells_are_text_and_not_markup():
    assert "[bold]x[/bold] :smile:" in as_text(Table("", words("a", "b"), [["r", "[bold]x[/bold] :smile:"]]))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_report_fits_a_terminal(terminal, width):
    terminal(width)
    names = ("cold-student", "direct-grpo", "bridge-only-1h", "half-split")
    report = whole_report(sets=("eval",), rows=names, published=False)
    lines = COLOUR.sub("", report.table()).split("\n")
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    start = lines.index("Rows")
    rows = lines[start : lines.index("Gains and costs")]
    # One block: every row once, with its flow below.
    for name in names:
        (place,) = (n for n, line in enumerate(rows) if line.startswith(f"{name} "))
        assert "123,456" in rows[place] and rows[place].endswith("10.0")
        assert rows[place + 1].startswith("  T: not trained | S: 2a > 2b > RL(all) ")
    for table in (table for section in report.sections if section.in_terminal for table in section.tables):
        for cell in (cell for line in table.lines for cell in line):
            assert all(word in " ".join(lines) for word in cell.split())


def test_large_counts_are_short():
    assert [count_text(n) for n in (0, 9_999_999, 12_345_678, 1_200_000_000)] == ["0", "9,999,999", "12.35 M", "1.20 G"]
