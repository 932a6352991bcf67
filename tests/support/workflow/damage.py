"""Ways in which a file goes bad."""

from __future__ import annotations

from pathlib import Path


def flip(path: Path, position: float = 0.5) -> None:
    """Change one bit, `position` of the way through the file."""
    data = bytearray(path.read_bytes())
    data[min(int(position * len(data)), len(data) - 1)] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    """Lose the second half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = (flip, truncate, remove)
