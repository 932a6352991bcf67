"""Read what the processes of a box use, from the machine's /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST = 1000
"""Processes to look at; a limit holds a box far below."""


@dataclass(frozen=True)
class Usage:
    """Resources that a process and its descendants use.

    Attributes:
        seconds: processor time, that of ended children included.
        waited: seconds that they were ready to run and had no processor.
        memory: resident bytes.
    """

    seconds: float
    waited: float
    memory: int


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it; those that end meanwhile may be missing."""
    found, waiting = 0, [pid]
    while waiting and found < _MOST:
        one = waiting.pop()
        found += 1
        yield one
        try:
            tasks = os.listdir(f"/proc/{one}/task")
        except OSError:
            continue
        for task in tasks:
            waiting += map(int, _read(f"/proc/{one}/task/{task}/children").split())


def usage(pid: int) -> Usage:
    """Sum what a process and its descendants use."""
    ticks, waited, pages = 0, 0, 0
    for one in descendants(pid):
        # The name, in parentheses, may hold anything.
        fields = _read(f"/proc/{one}/stat").rpartition(")")[2].split()
        if len(fields) < 22:
            continue
        ticks += sum(map(int, fields[11:15]))
        pages += int(fields[21])
        waited += int((_read(f"/proc/{one}/schedstat").split() or ["0", "0"])[1])
    return Usage(ticks / _TICK, waited / 1e9, pages * _PAGE)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
