"""Tables on terminals of several widths and in a file: nothing is cut, no short cell is broken."""

from __future__ import annotations

import random
import re
import sys

import pytest

from verl_s2d.report.table_text import Column, Table, as_text, words

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


@pytest.mark.parametrize("width", [60, 80, 120])
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
