"""Run one part in this process: python -P -m verl_s2d.gpu_check.part_process MODULE PART SETTINGS CHECKS."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

from verl_s2d.gpu_check import part_settings
from verl_s2d.gpu_check.figures import Recorder


def main(module: str, part: str, settings_file: str, checks_file: str) -> int:
    """Run the part; an exception becomes a failed check with its last line, and its traceback goes to the log."""
    record = Recorder(part, Path(checks_file))
    try:
        importlib.import_module(module).run(part_settings.read(Path(settings_file)), record)
    except Exception as error:
        traceback.print_exc()
        record.expect("ended", False, "".join(traceback.format_exception_only(error)).strip()[:2000], "no exception")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
