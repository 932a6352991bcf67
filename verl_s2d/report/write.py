"""The report over rows and seeds as data: accuracy, ledger and metrics; and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_s2d.data.files import write_json, written_whole
from verl_s2d.report.by_row.examples import examples_of
from verl_s2d.report.by_row.flow import PART_IN_FLOW, flows_of, lanes_of, method_place
from verl_s2d.report.by_row.gains import gains_of
from verl_s2d.report.row_results import RowResult, compare, summarise_row
from verl_s2d.report.story import compared

if TYPE_CHECKING:
    from verl_s2d.report.document import Section

PLOTS = "plots"

Published = Mapping[str, Mapping[str, float]]
"""Published avg@k in percent: row -> evaluation set -> value."""


@dataclass(frozen=True)
class Facts:
    """Facts of a run that its rows do not hold.

    Attributes:
        about: name -> text, for example student -> its hub id.
        command: command line that repeats the run; empty if unknown.
        published: results to show beside the rows.
        models: row -> links to its models, relative to the run directory.
        pilot: content of pilot.json; None where no pilot was run.
    """

    recipe: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    published: Published = field(default_factory=dict)
    models: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pilot: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """A report, as data.

    Attributes:
        data: content of report.json; accuracies are fractions.
    """

    data: dict[str, Any]

    @cached_property
    def sections(self) -> list[Section]:
        """Make the words, tables and plots that report.md and report.html show."""
        from verl_s2d.report.document import document

        return document(self.data)

    @property
    def files(self) -> list[str]:
        """Name the files that `write` writes."""
        plots = [f"{PLOTS}/{plot.name}.svg" for section in self.sections for plot in section.plots]
        return ["report.json", "report.md", "report.html", *plots]

    def table(self) -> str:
        """Write rows, paired differences and warnings as text for a terminal."""
        from verl_s2d.report.document import terminal

        return terminal(self.sections)

    def to_json(self) -> str:
        """Write the content of report.json."""
        return json.dumps(self.data, indent=1, ensure_ascii=False, allow_nan=False)

    def write(self, out_dir: str | Path) -> None:
        """Write `files`, report.json last."""
        from verl_s2d.report.document import markdown
        from verl_s2d.report.page import page

        out = Path(out_dir)
        drawn = {plot.name: plot.svg() for section in self.sections for plot in section.plots}
        for name, svg in drawn.items():
            _write(out / PLOTS / f"{name}.svg", svg)
        _write(out / "report.md", markdown(self.data, self.sections, plots=PLOTS))
        _write(out / "report.html", page(self.data, self.sections, drawn))
        write_json(self.data, out / "report.json")


def build_report(rows: Sequence[RowResult], facts: Facts | None = None) -> Report:
    """Aggregate rows over their seeds, and compare them pairwise within a seed.

    Args:
        rows: in the order of the report; a name occurs once per seed.

    Raises:
        ValueError: no rows, or a row twice under one seed.
    """
    facts = facts or Facts()
    names = list(dict.fromkeys(row.name for row in rows))
    cells = {(row.name, row.seed): row for row in rows}
    if not rows or len(cells) != len(rows):
        raise ValueError("a report needs at least one row, each once per seed")
    by_name = {name: [row for row in rows if row.name == name] for name in names}
    sets = list(dict.fromkeys(name for row in rows for name in row.result["sets"]))
    stages, flows, gains = _stages(rows), flows_of(rows), gains_of(rows, sets)
    data = {
        "run": _run(facts, rows, stages),
        "seeds": sorted({row.seed for row in rows}),
        "sets": sets,
        "samples": sorted({values["samples"] for row in rows for values in row.result["sets"].values()}),
        "rows": [
            summarise_row(name, members, sets)
            | {"published": dict(facts.published.get(name, {})), "flow": flows.get(name, [])}
            | gains[name]
            for name, members in by_name.items()
        ],
        "differences": [
            difference
            for a, b in combinations(names, 2)
            for set_name in sets
            if (difference := compare(by_name[a], by_name[b], set_name)) is not None
        ],
        "stages": stages,
        "alarms": [
            {"stage": stage["name"], "seeds": stage["seeds"], **alarm}
            for stage in stages
            for alarm in stage.pop("alarms")
        ],
    }
    data["examples"] = _examples(data, rows)
    data["pilot"] = facts.pilot
    return Report(printable(data))


def printable(value: Any) -> Any:
    """Replace unprintable characters in all texts: escape sequences, NUL or lone surrogates in names and in the output
    of models would break a terminal, an SVG or a file."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in value)
    if isinstance(value, Mapping):
        return {printable(k): printable(v) for k, v in value.items()}
    return [printable(v) for v in value] if isinstance(value, list | tuple) else value


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _stages(rows: Sequence[RowResult]) -> list[dict[str, Any]]:
    """List every stage once, with the rows and seeds it served, in order of its start where that is known; `place` is
    its place in the method."""
    stages: dict[str, dict[str, Any]] = {}
    lanes = {digest: lane for row in rows for digest, lane in lanes_of(row).items()}
    for row in rows:
        for given in row.stages:
            name = given["name"].removesuffix(f" (seed {row.seed})")
            empty = {
                "attempts": 1,
                **dict.fromkeys(("began", "ended", "until")),
                "versions": {},
                "machine": {},
                "curves": {},
                "alarms": [],
                "place": method_place(given, lanes),
            }
            kept = {key: value for key, value in given.items() if key not in PART_IN_FLOW}
            stage = stages.setdefault(given["digest"], {**empty, **kept, "name": name, "rows": [], "seeds": []})
            for served, one in (("rows", row.name), ("seeds", row.seed)):
                if one not in stage[served]:
                    stage[served].append(one)
    return sorted(stages.values(), key=lambda stage: stage["began"] or 0.0)


def _examples(data: Mapping[str, Any], rows: Sequence[RowResult]) -> list[dict[str, Any]]:
    """List problems that the best row gained and lost, in the first seed that has both rows."""
    if (names := compared(data)) is None:
        return []
    set_name = data["sets"][0]
    for seed in data["seeds"]:
        pair = [next((row for row in rows if (row.name, row.seed) == (name, seed)), None) for name in names]
        if all(row is not None and set_name in row.result["sets"] for row in pair):
            return examples_of(*pair, set_name)
    return []


def _run(facts: Facts, rows: Sequence[RowResult], stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    versions: dict[str, list[str]] = {}
    machines: list[dict[str, Any]] = []
    for stage in stages:
        machine = stage.pop("machine")
        machines += [machine] if machine and machine not in machines else []
        for package, version in stage.pop("versions").items():
            if version not in versions.setdefault(package, []):
                versions[package].append(version)
    sampling: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.result.get("sampling", {}).items():
            if key != "seed" and value not in sampling.setdefault(key, []):
                sampling[key].append(value)
    times = [stage[key] for stage in stages for key in ("began", "ended") if stage[key] is not None]
    return {
        "recipe": facts.recipe,
        "about": dict(facts.about),
        "command": facts.command,
        "models": {name: list(links) for name, links in facts.models.items()},
        "sampling": sampling,
        "versions": versions,
        "machines": machines,
        "began": min(times, default=None),
        "ended": max(times, default=None),
        "seconds": sum(stage["seconds"] for stage in stages),
    }
