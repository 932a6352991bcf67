"""Show screens of commands on terminals of 80, 100 and 120 columns, from stored results of real runs."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from rich.cells import cell_len

from tests.support.paths import ROOT
from verl_s2d import cli
from verl_s2d.checks.finding import Finding
from verl_s2d.command_line import command_parser
from verl_s2d.errors import UserError
from verl_s2d.planner.probe_page import probe_text
from verl_s2d.recipe.load import load_recipe
from verl_s2d.report.command_text import plan_text, run_text, status_text
from verl_s2d.report.table_text import wrapped
from verl_s2d.report.views import plan_view
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.progress import BarProgress

WIDTHS = (80, 100, 120)
SCREENS = ROOT / "tests" / "data" / "screens"
COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def stored(name: str) -> dict[str, Any]:
    return json.loads((SCREENS / f"{name}.json").read_text())


@pytest.fixture
def shown(monkeypatch) -> Callable[[Callable[[], str], int | None], str]:
    """Make a text on a terminal of a width, or for a file without one."""

    def show(make: Callable[[], str], width: int | None) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(sys.stdout, "isatty", lambda: width is not None)
            patch.setenv("COLUMNS", str(width or 80))
            patch.setenv("TERM", "xterm-256color")
            return COLOUR.sub("", make())

    return show


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    recipe = load_recipe(ROOT / "recipes" / "quickstart" / "quickstart.yaml")
    return plan_view(make_plan(recipe, run_dir=tmp_path_factory.mktemp("plan") / "runs"))


@pytest.fixture(
    params=[
        lambda plan: plan_text(stored("plan"), overrides=False),
        lambda plan: plan_text(plan, overrides=False),
        lambda plan: status_text(stored("status")),
        lambda plan: probe_text(stored("probe")),
        lambda plan: run_text(plan),
    ],
    ids=["plan with sizes", "plan", "status", "probe", "run"],
)
def screen(request, quickstart) -> Callable[[], str]:
    return lambda: request.param(quickstart)


def check_lines(text: str, width: int) -> None:
    """Hold every line to the width; one word, such as a path, may be longer."""
    for line in text.split("\n"):
        assert cell_len(line) <= width or " " not in line.strip(), line
    assert "…" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_screen_fits_and_shows_every_figure_and_word_of_the_file(shown, screen, width):
    terminal, file = shown(screen, width), shown(screen, None)
    check_lines(terminal, width)
    # Headings of lines are repeated where a table takes several blocks.
    assert not Counter(re.findall(r"\S*\d\S*", file)) - Counter(re.findall(r"\S*\d\S*", terminal))
    assert set(file.split()) <= set(terminal.split())


FINDINGS = [
    Finding("verl", True, "0.9.1"),
    Finding("registration", True, "platform cpu, trainer s2d_opd, trainer s2d_grpo, advantage estimator s2d_opd"),
    Finding.refusal(
        "models",
        UserError(
            "The student takes 512 tokens, and prompt and response of these stages have up to 18432 of them together.",
            key="stages.opd.response_tokens",
            value=16_384,
            remedy="Lower data.prompt_tokens or the tokens of responses, or take a student with a longer context.",
        ),
    ),
    Finding("disk", None, "not looked at"),
]


@pytest.mark.parametrize("width", WIDTHS)
def test_findings_of_check_fit_and_stay_under_their_mark(shown, width):
    for finding in FINDINGS:
        told = finding.text()
        text = shown(partial(wrapped, told, " " * 7), width)
        check_lines(text, width)
        assert text.split() == told.split()
        assert all(line.startswith(" " * 7) for line in text.split("\n")[1:])


def help_pages() -> list[str]:
    (commands,) = (a for a in command_parser()._actions if isinstance(getattr(a, "choices", None), dict))
    return ["", *commands.choices]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", help_pages())
def test_help_fits(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        cli.main([*filter(None, [command]), "--help"])
    check_lines(capsys.readouterr().out, width)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_of_a_running_stage_fits_and_shows_its_step(width, capsys, monkeypatch, tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "quickstart" / "quickstart.yaml", ["rows=[replay-control]"])
    trained = [node for node in make_plan(recipe, run_dir=tmp_path).order if node.stage.trains]
    node = max(trained, key=lambda node: len(node.name))
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    progress = BarProgress()
    progress.stage_started(node, 12, 14, 1200, 3)
    progress.stage_step(node, None)
    progress._bars.refresh()
    progress.stage_step(node, 1137, ["score 0.215", "reverse KL 0.120", "12,345 tokens/s/device"])
    progress._bars.refresh()
    progress.stage_ended(node, 3725.0, "done")
    said = COLOUR.sub("", capsys.readouterr().err).replace("\r", "\n")
    check_lines(said, width)
    assert "1137/1200" in said and f"[12/14] {node.name} (attempt 3)" in said and "1 h 02 min" in said
    assert "starting models and engines" in said
    assert "score 0.215, reverse KL 0.120, 12,345 tokens/s/device" in said
