"""Run parts one after the other, each in its own process with a time limit; a failure does not stop the next."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from verl_s2d.gpu_check.figures import FAILED, Check, read_checks
from verl_s2d.gpu_check.gpu_report import PartResult
from verl_s2d.gpu_check.part_registry import Part
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.logs import last_lines
from verl_s2d.platforms.environment import stage_environment
from verl_s2d.platforms.temporary_files import new_directory, temporary_files_in
from verl_s2d.workflow.hosts.process import Handle, SubprocessLauncher, kill_marked

MARKER = "VERL_S2D_GPU_CHECK"
"""Environment variable that every process of a part inherits, by which survivors are found and killed."""
_LOG_LINES = 30


def run_parts(
    parts: Sequence[Part],
    settings: Settings,
    *,
    show: Callable[[str], None],
    finished: Callable[[list[PartResult]], None] = lambda results: None,
) -> list[PartResult]:
    """Run every part and return their results.

    Args:
        settings: settings of the parts; the scratch directory has to exist.
        show: called at once with each line of text.
        finished: called after every part with the results so far.
    """
    results: list[PartResult] = []
    for part in parts:
        results.append(_run(part, settings, show))
        finished(results)
    return results


def _run(part: Part, settings: Settings, show: Callable[[str], None]) -> PartResult:
    checks_file, log = settings.scratch / f"{part.name}.jsonl", settings.scratch / f"{part.name}.log"
    for left in (checks_file, log):
        left.unlink(missing_ok=True)  # of an earlier check with the same scratch directory
    value = secrets.token_hex(8)
    argv = [sys.executable, "-P", "-m", "verl_s2d.gpu_check.part_process"]
    argv += [part.module, part.name, str(settings.write()), str(checks_file)]
    began = time.monotonic()
    with new_directory() as temporary:
        environment = {**stage_environment(settings.device), **temporary_files_in(temporary), MARKER: value}
        environment.pop("RAY_ADDRESS", None)  # this machine is checked, not a cluster
        handle = SubprocessLauncher().start(argv, environment, settings.scratch, log)
        try:
            code = _watch(handle, checks_file, began + part.seconds, show)
        finally:
            # First the group, then the processes that left it, such as the workers of Ray and vLLM.
            handle.kill()
            kill_marked(value, MARKER)
    seconds = time.monotonic() - began
    checks = read_checks(checks_file)
    ended = None
    if code is None:
        ended = Check(part.name, "limit", FAILED, f"killed after {seconds:.0f} s", f"<= {part.seconds} s")
    elif code != 0 and not any(check.state == FAILED for check in checks):
        ended = Check(part.name, "ended", FAILED, f"exit code {code}", "0")
    elif not checks:
        ended = Check(part.name, "ended", FAILED, "the part recorded nothing", "at least one check")
    if ended is not None:
        checks.append(ended)
        show(ended.text())
    failed = any(check.state == FAILED for check in checks)
    state = "killed" if code is None else "failed" if failed else "ok"
    show(f"---- {part.name}: {state}, {seconds:.0f} s")
    return PartResult(part.name, state, round(seconds, 1), part.seconds, checks, _tail(log) if failed else [])


def _watch(handle: Handle, checks_file: Path, deadline: float, show: Callable[[str], None]) -> int | None:
    """Show checks as they are recorded, until the process ends (its exit code) or the deadline passes (None)."""
    shown = 0
    while True:
        code = handle.poll()
        checks = read_checks(checks_file)
        for check in checks[shown:]:
            show(check.text())
        shown = len(checks)
        if code is not None or time.monotonic() > deadline:
            return code
        time.sleep(0.1)


def _tail(log: Path) -> list[str]:
    return last_lines(log, _LOG_LINES)
