"""What was built, as the report wants it. Read from the manifests, so that a run directory is enough."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.recipe.pass_at_k import mean_pass_at
from verl_s2d.recipe.row_checks import ROW_NAMES
from verl_s2d.report.curves import curves_of
from verl_s2d.report.row_results import Match, RowResult
from verl_s2d.report.warnings import alarms_of
from verl_s2d.report.write import Facts, Report, build_report
from verl_s2d.workflow import attempts
from verl_s2d.workflow.graph import MATCHED, stage_label
from verl_s2d.workflow.ledger import Ledger, add_ledgers, amount, empty_ledger
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.digests import damage
from verl_s2d.workflow.store.manifest import inspect_manifest
from verl_s2d.workflow.store.run_directory import read_record
from verl_s2d.workflow.watch.alarm_log import recorded
from verl_s2d.workflow.watch.metric_logs import read_metrics

Manifest = Mapping[str, Any]
_EVALUATION = re.compile(r"evaluate-(.+?)(?: \(seed -?\d+\))?")


def finished_rows(plan: Plan) -> list[RowResult]:
    """The rows whose evaluation is there, in the order of the plan.

    Raises:
        UserError: a manifest or a result is damaged.
    """
    built = {node.digest for node in plan.order} - {node.digest for node in plan.missing()}
    stages = _Stages(plan.context.run_dir, {node.digest: node.name for node in plan.order})
    rows = [stages.row(row.name, row.seed, row.target.digest) for row in plan.rows if row.target.digest in built]
    for row in rows if plan.recipe.evaluation.pass_at else ():
        for name, values in row.result["sets"].items():
            right = [problem["correct"] for problem in row.result["per_problem"][name]]
            values["pass_at"] = mean_pass_at(right, values["samples"], plan.recipe.evaluation.pass_at)
    return rows


def found_rows(run_dir: Path, names: list[str] | None = None, seeds: list[int] | None = None) -> list[RowResult]:
    """The finished rows of a run directory, without its recipe; of a row evaluated more than once under a seed, because
    settings changed, the newest.

    Args:
        names, seeds: only these.

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
    places = {name: place for place, name in enumerate(ROW_NAMES)}
    stages = _Stages(run_dir, {})
    return [
        stages.row(name, seed, newest[name, seed][1])
        for name, seed in sorted(newest, key=lambda row: (row[1], places.get(row[0], len(places)), row[0]))
        if (not names or names == ["all"] or name in names) and (not seeds or seed in seeds)
    ]


def recorded_facts(run_dir: Path) -> Facts:
    """What the last `run` in a directory has noted about itself."""
    record = read_record(run_dir) or {}
    return Facts(record.get("recipe", run_dir.name), **record.get("facts", {}))


def report_of(rows: list[RowResult], run_dir: Path, facts: Facts) -> Report:
    """The report; its files are written unless they say the same already (drawing the plots takes longer than all
    the rest of a run that has nothing to build).

    Raises:
        UserError: the directory cannot be written.
    """
    report = build_report(rows, facts)
    try:
        written = json.loads((run_dir / "report.json").read_text())
    except (OSError, ValueError):
        written = None
    if json.loads(report.to_json()) == written and all((run_dir / name).is_file() for name in report.files):
        return report
    try:
        report.write(run_dir)
    except OSError as error:
        raise UserError(
            f"The report cannot be written: {error.strerror or error}.",
            key="--run-dir",
            value=str(run_dir),
            remedy="Make room or give write access; or copy the directory and report on the copy.",
        ) from error
    return report


class _Stages:
    """The finished stages of a run directory; each is read once.

    Args:
        names: digest -> name, for messages about a stage whose manifest cannot say it.
    """

    def __init__(self, run_dir: Path, names: Mapping[str, str]):
        self._stages, self._names = run_dir / "stages", names
        self._manifests: dict[str, Manifest] = {}
        self._entries: dict[str, dict[str, Any]] = {}

    def row(self, name: str, seed: int, evaluation: str) -> RowResult:
        """The row that ends with this evaluation (its digest)."""
        target = self._manifest("evaluate", evaluation)
        behind = self._lineage(target)
        ledger = _spent(behind)
        return RowResult(
            name, seed, self._result(target), ledger, [self._entry(m) for m in behind], self._match(target, ledger)
        )

    def _lineage(self, target: Manifest) -> list[Manifest]:
        """The stage and all it was built from, each once, inputs before users; without what only said when to stop."""
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
            # A stage may be missing when its directory was deleted after the row was finished.
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
        """A stage as a row of the report has it."""
        digest, kind, directory = manifest["digest"], manifest["kind"], self._directory(manifest)
        if digest not in self._entries:
            metrics = read_metrics(directory)
            began, ended = attempts.span(directory)
            self._entries[digest] = {
                **{key: manifest[key] for key in ("kind", "name", "digest", "seconds", "attempts", "versions")},
                "dir": str(directory),
                "updates": manifest["ledger"]["updates"],
                "began": began,
                "ended": ended,
                "curves": curves_of(kind, manifest["settings"].get("response_tokens"), metrics),
                "alarms": _alarms(manifest, directory, alarms_of(kind, metrics)),
            }
        return self._entries[digest]

    def _match(self, target: Manifest, ledger: Ledger) -> Match | None:
        """Of a row whose last stage stops at another's ledger."""
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


def _alarms(manifest: Manifest, directory: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was raised while the stage ran, with what became of it; `found` in what it logged counts for stages that
    were not watched then."""
    raised = [
        {"step": a.get("since", a["step"]), **{k: a[k] for k in ("text", "alarm", "action")}}
        for a in recorded(directory)
    ]
    alarms = raised if any(alarm["alarm"] == "not_finite" for alarm in raised) else found + raised
    if stopped := manifest.get("stopped"):
        score = f", validation score {stopped['score']:.4g}" if stopped["score"] is not None else ""
        text = f"ended by {stopped['alarm']['alarm']}; its result is the checkpoint of step {stopped['kept']}{score}"
        alarms = [
            *alarms,
            {"step": stopped["steps"], "text": text, "alarm": stopped["alarm"]["alarm"], "action": "stop"},
        ]
    return alarms


def _damaged(name: str, directory: Path, problem: str) -> UserError:
    return UserError(
        f"{name} is damaged: {problem}.",
        key="stage",
        value=str(directory),
        remedy="`verl-s2d run` builds it again; or put back a copy of the file.",
    )


def _spent(stages: Iterable[Manifest]) -> Ledger:
    """What stages consumed; evaluating is not training."""
    return add_ledgers(stage["ledger"] for stage in stages if stage["kind"] != "evaluate")
