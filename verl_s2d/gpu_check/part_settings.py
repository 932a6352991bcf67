"""Settings of one gpu-check, handed to the process of every part as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Settings that a part runs with.

    Attributes:
        device: `cuda` (verl's word for any accelerator), or `cpu`, where everything is done at a tiny size.
        directory: scratch files of all parts; deleted after the check unless it was asked for.
        model: directory of real weights for the parts that load a model; None for random ones of this check's own.
        recipe: recipe whose hours the summary estimates; None for none.
    """

    device: str
    directory: str
    model: str | None = None
    recipe: str | None = None

    @property
    def scratch(self) -> Path:
        """The directory as a path."""
        return Path(self.directory)

    @property
    def on_cpu(self) -> bool:
        """True for tiny sizes without an accelerator."""
        return self.device == "cpu"

    def write(self) -> Path:
        """Write the settings where `read` finds them; returns the file."""
        path = self.scratch / "settings.json"
        path.write_text(json.dumps(asdict(self)))
        return path


def read(path: Path) -> Settings:
    """Read what `Settings.write` wrote."""
    known = {field.name for field in fields(Settings)}
    return Settings(**{name: value for name, value in json.loads(path.read_text()).items() if name in known})
