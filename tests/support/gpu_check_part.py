"""A part of gpu-check for tests: what it does is in its name, as in `hangs`, so one module is many parts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass

from verl_s2d.gpu_check.figures import Recorder
from verl_s2d.gpu_check.part_registry import Part
from verl_s2d.gpu_check.part_settings import Settings


@dataclass(frozen=True)
class FakePart(Part):
    """A part whose module is this one."""

    @property
    def module(self) -> str:
        return __name__


def run(settings: Settings, record: Recorder) -> None:
    behaviour = record._part.rstrip("0123456789")
    if behaviour == "passes":
        record.at_most("seconds", 1.0, 2.0, "s")
        record.figure("not a number", float("nan"))
    elif behaviour == "fails":
        record.at_least("speed", 1.0, 2.0, "tokens/s")
    elif behaviour == "raises":
        raise RuntimeError("the reason")
    elif behaviour == "dies":
        os._exit(3)
    elif behaviour == "hangs":
        record.expect("began", True, "yes")
        # In a session of its own, as the workers of vLLM and Ray are: the process group does not reach it.
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (settings.scratch / "child").write_text(str(child.pid))
        time.sleep(600)
