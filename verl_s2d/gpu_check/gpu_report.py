"""The report of a gpu-check as data: what --out writes and what an issue should hold."""

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
from verl_s2d.workflow.store.manifest import installed_versions

FORMAT = 1


@dataclass(frozen=True)
class PartResult:
    """Findings of one part.

    Attributes:
        state: ok, failed, or killed (its limit passed, which is a failure).
        seconds: wall time of its process.
        limit_seconds: when it would have been killed.
        log_tail: last lines of its log; empty unless it failed.
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
    """Settings, versions and every check of every part; secrets of the environment are blotted out."""
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
    """Write the report; called after every part, so that a broken connection leaves what was found so far."""
    write_json(report(settings, results), path)
