"""Share between all faults the undisturbed run to compare with, and the table at the end.

`S2D_FAULTS=5` makes every test five times, with seeds 0 to 4; by default once, with seed 0.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from tests.support.workflow.faults import finish, write_recipe

_ROUNDS = int(os.environ.get("S2D_FAULTS", "1"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(_ROUNDS))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to. Not to be changed."""
    directory = tmp_path_factory.mktemp("undisturbed")
    finish(write_recipe(directory), directory / "run")
    return directory / "run"


@pytest.fixture
def fault(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Enters what struck, and where, into the table at the end."""

    def enter(what: str, where: str) -> None:
        print(f"fault: {what} | {where}", flush=True)
        record_property("fault", (what, where))

    return enter


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """fault | where | survived / tried, a fault being survived when the test it belongs to has passed."""
    tried: Counter[tuple[str, str]] = Counter()
    survived: Counter[tuple[str, str]] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            faults = [value for name, value in report.user_properties if name == "fault"]
            tried.update(faults)
            survived.update(faults if outcome == "passed" else [])
    if tried:
        terminalreporter.write_line("| fault | where | survived / tried |\n|---|---|---|")
        for what, where in sorted(tried):
            terminalreporter.write_line(f"| {what} | {where} | {survived[what, where]} / {tried[what, where]} |")
