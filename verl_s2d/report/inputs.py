"""Inputs of the report, read from manifests and logs: a run directory suffices, without its recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.metrics.metric_logs import read_metrics
from verl_s2d.recipe.method_rows import METHOD_ROWS, ROUTED_ROWS
from verl_s2d.recipe.pass_at_k import mean_pass_at
from verl_s2d.recipe.rows import ROWS
from verl_s2d.report.by_row.examples import read_answers
from verl_s2d.report.by_row.row_models import link_models
from verl_s2d.report.by_row.stage_entries import part_in_flow
from verl_s2d.report.curves import curves_of
from verl_s2d.report.row_results import Match, RowResult
from verl_s2d.report.write import Facts, Report, build_report
from verl_s2d.workflow import attempts
from verl_s2d.workflow.graph import MATCHED, stage_label
from verl_s2d.workflow.ledger import Ledger, add_ledgers, amount, empty_ledger
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.digests import damage
from verl_s2d.workflow.store.manifest import inspect_manifest
from verl_s2d.workflow.store.run_directory import read_record
from verl_s2d.workflow.watch.alarm_log import recorded

Manifest = Mapping[str, Any]
_EVALUATION = re.compile(r"evaluate-(.+?)(?: \(seed -?\d+\))?")


def finished_rows(plan: Plan) -> list[RowResult]:
    """Read the rows whose evaluation is finished, in the order of the plan.

    Raises:
        UserError: a manifest or a result is damaged.
    """
    built = {node.digest for node in plan.order} - {node.digest for node in plan.missing()}
    stages = _Stages(plan.context.run_dir, {node.digest: node.name for node in plan.order})
    rows = [stages.row(row.name, row.seed, row.target.digest) for row in plan.rows if row.target.digest in built]
    for row in rows if plan.recipe.evaluation.pass_at else ():
        for name, values in row.result["sets"].items():
            complete = [p for p in row.result["per_problem"][name] if p["samples"] == values["samples"]]
            if complete:
                right = [problem["correct"] for problem in complete]
                values["pass_at"] = mean_pass_at(right, values["samples"], plan.recipe.evaluation.pass_at)
    return rows


def found_rows(run_dir: Path, names: list[str] | None = None, seeds: list[int] | None = None) -> list[RowResult]:
    """Read the finished rows of a run directory; for each row and seed its newest evaluation, since settings may have
    changed.

    Args:
        names, seeds: rows and seeds to read; None for all.

    Raises:
        UserError: not a run directory, or a manifest or a result is damaged.
    """
    if not (run_dir / "stages").is_dir():
        raise UserError(
            "The directory holds no run.",
            key="recipe",
            value=str(run_dir),
            remedy="Give a recipe, or a directory that `verl-s2d run` has written (runs/<recipe name>).",
        )
    newest: dict[tuple[str, int], tuple[float, str]] = {}
    for directory in sorted((run_dir / "stages").glob("evaluate-*")):
        manifest, problem = inspect_manifest(directory)
        if problem is not None:
            raise _damaged(directory.name, directory, problem)
        name = _EVALUATION.fullmatch(manifest["name"]) if manifest else None
        if name is None:
            continue
        row, ended = (name[1], manifest["settings"]["seed"]), attempts.span(directory)[1] or 0.0
        if row not in newest or newest[row][0] < ended:
            newest[row] = (ended, manifest["digest"])
    places = {name: place for place, name in enumerate((*ROWS, *METHOD_ROWS, *ROUTED_ROWS))}
    stages = _Stages(run_dir, {})
    return [
        stages.row(name, seed, newest[name, seed][1])
        for name, seed in sorted(newest, key=lambda row: (row[1], places.get(row[0], len(places)), row[0]))
        if (not names or names == ["all"] or name in names) and (not seeds or seed in seeds)
    ]


def recorded_facts(run_dir: Path) -> Facts:
    """Read the facts that the last `run` recorded in a directory."""
    record = read_record(run_dir) or {}
    return Facts(record.get("recipe", run_dir.name), **record.get("facts", {}))


def report_of(rows: list[RowResult], run_dir: Path, facts: Facts) -> Report:
    """Link the rows' models, build the report and write its files, unless they exist with equal content: drawing the
    plots takes longer than the rest of a run that has nothing to build.

    Raises:
        UserError: the directory cannot be written.
    """
    try:
        report = build_report(rows, replace(facts, models=link_models(rows, run_dir)))
    except OSError as error:
        raise _not_written(error, run_dir) from error
    try:
        written = json.loads((run_dir / "report.json").read_text())
    except (OSError, ValueError):
        written = None
    if json.loads(report.to_json()) == written and all((run_dir / name).is_file() for name in report.files):
        return report
    try:
        report.write(run_dir)
    except OSError as error:
        raise _not_written(error, run_dir) from error
    return report


def _not_written(error: OSError, run_dir: Path) -> UserError:
    return UserError(
        f"The report cannot be written: {error.strerror or error}.",
        key="--run-dir",
        value=str(error.filename or run_dir),
        remedy="Free disk space or grant write access; or report on a copy of the directory.",
    )


class _Stages:
    """Finished stages of a run directory; each is read once.

    Args:
        names: digest -> name, for messages about a stage with a damaged manifest.
    """

    def __init__(self, run_dir: Path, names: Mapping[str, str]):
        self._stages, self._names = run_dir / "stages", names
        self._manifests: dict[str, Manifest] = {}
        self._entries: dict[str, dict[str, Any]] = {}

    def row(self, name: str, seed: int, evaluation: str) -> RowResult:
        """Read the row that ends with an evaluation, given by its digest."""
        target = self._manifest("evaluate", evaluation)
        behind = self._lineage(target)
        ledger = _spent(behind)
        entries = [self._entry(manifest) for manifest in behind]
        answers = partial(read_answers, self._directory(target) / "generations.parquet")
        return RowResult(name, seed, self._result(target), ledger, entries, self._match(target, ledger), answers)

    def _lineage(self, target: Manifest) -> list[Manifest]:
        """List a stage and its ancestors, inputs before users, without those that only set its stopping budget."""
        found: dict[str, Manifest] = {}
        waiting = [(target, False)]
        while waiting:
            manifest, inputs_done = waiting.pop()
            if manifest["digest"] in found:
                continue
            if inputs_done:
                found[manifest["digest"]] = manifest
                continue
            waiting.append((manifest, True))
            sources = [source for role, source in sorted(manifest["inputs"].items(), reverse=True) if role != MATCHED]
            waiting += [(self._manifest(**source), False) for source in sources]
        return list(found.values())

    def _manifest(self, kind: str, digest: str) -> Manifest:
        if digest not in self._manifests:
            directory = self._stages / stage_label(kind, digest)
            manifest, problem = inspect_manifest(directory)
            if problem is not None:
                raise _damaged(self._names.get(digest, directory.name), directory, problem)
            # The directory of an ancestor may have been deleted after the row was finished.
            self._manifests[digest] = manifest or {
                **{"kind": kind, "name": kind, "digest": digest, "settings": {}, "inputs": {}, "outputs": []},
                **{"ledger": empty_ledger(), "seconds": 0.0, "attempts": 0, "versions": {}},
            }
        return self._manifests[digest]

    def _result(self, target: Manifest) -> dict[str, Any]:
        directory = self._directory(target)
        wrong = damage(directory, [output for output in target["outputs"] if output["name"] == "result.json"])
        try:
            if not wrong:
                return json.loads((directory / "result.json").read_text())
        except (OSError, ValueError) as error:
            wrong = [f"result.json: {error}"]
        raise _damaged(target["name"], directory, wrong[0])

    def _entry(self, manifest: Manifest) -> dict[str, Any]:
        """Describe a stage as `row_results.RowResult.stages` wants it."""
        digest, kind, directory = manifest["digest"], manifest["kind"], self._directory(manifest)
        if digest not in self._entries:
            began, ended = attempts.span(directory)
            self._entries[digest] = {
                **{key: manifest[key] for key in ("kind", "name", "digest", "seconds", "attempts", "versions")},
                "dir": str(directory),
                "updates": manifest["ledger"]["updates"],
                "until": manifest.get("until", {}).get("reason"),
                "machine": manifest.get("machine", {}),
                **part_in_flow(manifest, self._manifest),
                "began": began,
                "ended": ended,
                "curves": curves_of(kind, manifest["settings"].get("response_tokens"), read_metrics(directory)),
                "alarms": _alarms(manifest, directory),
            }
        return self._entries[digest]

    def _match(self, target: Manifest, ledger: Ledger) -> Match | None:
        """Compare budget and consumption of a row whose last stage stops at the ledger of another row."""
        source = target["inputs"].get("model")
        model = self._manifest(**source) if source else {"settings": {}}
        matched = model["settings"].get("matched")
        if matched is None:
            return None
        goal = matched.get("budget")
        if goal is None:
            other = self._lineage(self._manifest(**model["inputs"][MATCHED]))
            if not all(self._directory(stage).is_dir() for stage in other):
                return None
            goal = amount(_spent(other), matched["by"])
        return Match(matched["to"], matched["by"], goal, amount(ledger, matched["by"]))

    def _directory(self, manifest: Manifest) -> Path:
        return self._stages / stage_label(manifest["kind"], manifest["digest"])


def _alarms(manifest: Manifest, directory: Path) -> list[dict[str, Any]]:
    """List the alarms raised while the stage ran, and the early stop that one of them caused."""
    alarms = [
        {"step": alarm.get("since", alarm["step"]), **{key: alarm[key] for key in ("text", "alarm", "action")}}
        for alarm in recorded(directory)
    ]
    if stopped := manifest.get("stopped"):
        name, score = stopped["alarm"]["alarm"], stopped["score"]
        scored = "" if score is None else f", validation score {score:.4g}"
        text = f"ended by {name}; its result is the checkpoint of step {stopped['kept']}{scored}"
        alarms.append({"step": stopped["steps"], "text": text, "alarm": name, "action": "stop"})
    return alarms


def _damaged(name: str, directory: Path, problem: str) -> UserError:
    return UserError(
        f"{name} is damaged: {problem}.",
        key="stage",
        value=str(directory),
        remedy="`verl-s2d run` builds it again; or restore the file from a copy.",
    )


def _spent(stages: Iterable[Manifest]) -> Ledger:
    """Add the ledgers of stages; evaluations do not count."""
    return add_ledgers(stage["ledger"] for stage in stages if stage["kind"] != "evaluate")
