"""Define the settings of a gpu-check, which reach the process of every part as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Settings that a part runs with.

    Attributes:
        device: `cuda` (verl's name for any accelerator), or `cpu`, where all sizes are tiny.
        directory: scratch files of all parts; deleted after the check unless --keep names it.
        model: directory of real weights for the parts that load a model; None for random models.
        recipe: recipe whose hours the summary estimates, or None.
    """

    device: str
    directory: str
    model: str | None = None
    recipe: str | None = None

    @property
    def scratch(self) -> Path:
        """Return the directory as a path."""
        return Path(self.directory)

    @property
    def on_cpu(self) -> bool:
        """Tell whether sizes are tiny, without an accelerator."""
        return self.device == "cpu"

    def write(self) -> Path:
        """Write the settings as JSON; returns the file, for `read`."""
        path = self.scratch / "settings.json"
        path.write_text(json.dumps(asdict(self)))
        return path


def read(path: Path) -> Settings:
    """Read a file of `Settings.write`."""
    known = {field.name for field in fields(Settings)}
    return Settings(**{name: value for name, value in json.loads(path.read_text()).items() if name in known})
