"""Build the report of a gpu-check, which --out writes and issues should include."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_s2d import __version__, redaction
from verl_s2d.data.files import write_json
from verl_s2d.gpu_check.figures import Check
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.platforms.provenance import installed_versions

FORMAT = 1


@dataclass(frozen=True)
class PartResult:
    """Findings of one part.

    Attributes:
        state: ok, failed, or killed at the time limit, which is a failure.
        seconds: wall time of the part's process.
        limit_seconds: time limit of the process.
        log_tail: last lines of the log; empty unless the part failed.
    """

    name: str
    state: str
    seconds: float
    limit_seconds: int
    checks: list[Check]
    log_tail: list[str]

    @property
    def ok(self) -> bool:
        """True if no check of the part failed."""
        return self.state == "ok"


def report(settings: Settings, results: Sequence[PartResult]) -> dict[str, Any]:
    """Collect settings, versions and every check of every part; secrets of the environment are redacted."""
    data = {
        "format": FORMAT,
        "verl_s2d": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": settings.device,
        "model": settings.model,
        "versions": installed_versions(),
        "ok": all(result.ok for result in results),
        "seconds": round(sum(result.seconds for result in results), 1),
        "parts": [asdict(result) for result in results],
    }
    return redaction.current().data(data)


def write_report(path: Path, settings: Settings, results: Sequence[PartResult]) -> None:
    """Write the report. Called after every part, so that an interrupted check keeps its results."""
    write_json(report(settings, results), path)
