"""Tables as text: by rich for terminals and files, and in markdown."""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

MISSING = "-"
_GAP, _WIDE, _UNLIMITED = 2, 24, 1_000_000
"""Spaces between columns; longer cells may be wrapped; width of a file."""
_INDENT = "  "
_SPECIAL = re.compile(r"([\\`*\[\]|#])")


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        numeric: align to the right.
        wide: let the page wrap its text.
    """

    name: str
    numeric: bool = True
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Cells as text; the first cell of a line is its heading.

    Attributes:
        notes: text below each line in a terminal or file; empty for none.
    """

    caption: str
    columns: Sequence[Column]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def words(*names: str) -> list[Column]:
    """Make columns that are aligned to the left."""
    return [Column(name, numeric=False) for name in names]


def count_text(value: float) -> str:
    """Write a count: `123,456`, from ten million on `12.35 M` or `1.20 G`."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if value >= max(size, 1e7):
            return f"{value / size:.2f} {unit}"
    return f"{value:,.0f}"


def shortened(text: str, most: int) -> str:
    """Shorten text in the middle."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def wrapped(text: str, indent: str = "") -> str:
    """Wrap each line to the width of a terminal, continued under `indent`; in a file lines stay as they are."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
    return "\n".join(textwrap.fill(line, width, **options) if len(line) > width else line for line in text.split("\n"))


def as_text(*parts: str | Table) -> str:
    """Join paragraphs and tables for standard output; captions of tables are left out.

    A terminal gets lines of its width and bold headers; columns without room follow in a block of their own. A file
    gets one line per table line. No cell is cut.
    """
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else _UNLIMITED
    stream = io.StringIO()
    # Cells are text, never markup. A column's width is ours: rich would narrow columns to fit its own.
    console = Console(file=stream, width=_UNLIMITED, force_terminal=terminal, markup=False, emoji=False)
    for part in parts:
        if isinstance(part, str):
            stream.writelines(f"{_filled(line, width)}\n" for line in part.split("\n"))
            continue
        for number, block in enumerate(_blocks(part, width)):
            stream.write("\n" if number else "")
            console.print(block.drawn([], header=True))
            for line, note in zip_longest(part.lines, () if number else part.notes):
                console.print(block.drawn([line], header=False))
                stream.write(_note(note, width) if note else "")
    return "\n".join(line.rstrip() for line in stream.getvalue().removesuffix("\n").split("\n"))


def as_markdown(table: Table) -> str:
    """Write a table in markdown, without its caption."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escaped(cell) for cell in cells) + " |"

    header = [line([column.name for column in table.columns]), "|" + "---|" * len(table.columns)]
    return "\n".join([*header, *(line(cells) for cells in table.lines)])


def escaped(text: str) -> str:
    """Escape text that markdown would interpret: names come from recipes and data."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def _filled(line: str, width: int) -> str:
    # Paths and arguments stay whole, so that they can be copied.
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) if len(line) > width else line


@dataclass(frozen=True)
class _Block:
    """Columns of a table that fit the width.

    Attributes:
        places: of its columns in the table.
        widths: characters, without the gap.
    """

    columns: Sequence[Column]
    places: Sequence[int]
    widths: Sequence[int]

    def drawn(self, lines: Sequence[Sequence[str]], *, header: bool) -> RichTable:
        """Draw lines; drawn one by one they are still aligned."""
        made = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=header)
        for n, width in zip(self.places, self.widths, strict=True):
            justify = "right" if self.columns[n].numeric else "left"
            made.add_column(self.columns[n].name, justify=justify, width=width, overflow="fold")
        for line in lines:
            made.add_row(*(line[n] for n in self.places))
        return made


def _blocks(table: Table, width: int) -> Iterator[_Block]:
    """Divide the columns into blocks that fit the width; each begins with the first column."""
    cells = [[column.name, *(line[n] for line in table.lines)] for n, column in enumerate(table.columns)]
    # A header may be wrapped at every space.
    least = [max(*map(cell_len, name.split()), 0, *map(_narrowest, column)) for name, *column in cells]
    most = [max(map(cell_len, column)) for column in cells]
    waiting = list(range(1, len(cells)))
    while True:
        block, spare = [0], width - least[0]
        while waiting and (len(block) == 1 or spare >= _GAP + least[waiting[0]]):
            spare -= _GAP + least[waiting[0]]
            block.append(waiting.pop(0))
        yield _Block(table.columns, block, _widths([least[n] for n in block], [most[n] for n in block], spare))
        if not waiting:
            return


def _note(text: str, width: int) -> str:
    """Indent a note below its line."""
    given = {"initial_indent": _INDENT, "subsequent_indent": _INDENT}
    return textwrap.fill(text, width, **given, break_long_words=False, break_on_hyphens=False) + "\n"


def _widths(least: Sequence[int], most: Sequence[int], spare: int) -> list[int]:
    """Share spare width equally among the columns that need it."""
    widths, left = list(least), len(least)
    for n in sorted(range(left), key=lambda n: most[n] - least[n]):
        more = max(0, min(most[n] - least[n], spare // left))
        widths[n], spare, left = widths[n] + more, spare - more, left - 1
    return widths


def _narrowest(cell: str) -> int:
    """Width below which a cell would be wrapped although it is short, or inside of a word."""
    return cell_len(cell) if cell_len(cell) <= _WIDE else max(_WIDE, *map(cell_len, cell.split()))
