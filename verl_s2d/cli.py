"""Run the command verl-s2d, a function for each subcommand (`verl-s2d --help`).

Exit codes: 0 done, 1 a stage or check failed, 2 bad input, 130 interrupted by Ctrl-C, 143 interrupted by SIGTERM. The
last two are 128 + the signal's number, which schedulers expect of a preempted job; running the command again resumes.
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from verl_s2d import redaction
from verl_s2d.command_line import command_parser, parse
from verl_s2d.errors import UserError
from verl_s2d.platforms.device import accelerator_here
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.failures import Interrupted
from verl_s2d.workflow.plan import Plan

if TYPE_CHECKING:
    from verl_s2d.checks.finding import Finding

OK, FAILED, BAD_INPUT = 0, 1, 2
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parse(argv)
    return guarded(lambda: _COMMANDS[options.command](options), sys.argv[1:] if argv is None else argv)


def guarded(command: Callable[[], int], words: Sequence[str] = ()) -> int:
    """Run a command and return its exit code; errors that a user can mend are printed without a traceback.

    Args:
        words: the command line, for the advice to run it again.
    """
    again = " ".join(["verl-s2d", *words])
    try:
        return command()
    except UserError as error:
        for text in error.texts():
            print(f"error: {redaction.current().text(text)}", file=sys.stderr)
        return BAD_INPUT
    except (Interrupted, KeyboardInterrupt) as interrupt:
        print(
            f"interrupted; all processes are stopped. To resume, run the same command again:\n  {again}",
            file=sys.stderr,
        )
        return 128 + getattr(interrupt, "number", signal.SIGINT)
    except BrokenPipeError:
        return OK
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{where}; all processes are stopped, finished stages are intact. Make room, then "
            f"run the same command again:\n  {again}",
            file=sys.stderr,
        )
        return FAILED


def _load(options: argparse.Namespace) -> Plan:
    recipe = load_recipe(options.recipe, options.changes, shrink=_shrink(options))
    return make_plan(recipe, run_dir=options.run_dir, rows=options.rows, seeds=options.seeds)


def _shrink(options: argparse.Namespace) -> str | None:
    """Return the device to shrink the recipe for; None without --shrink."""
    return ("cuda" if accelerator_here() else "cpu") if options.shrink else None


def _refuse_overrides(options: argparse.Namespace) -> None:
    """Raise UserError for overrides or --shrink beside a run directory: its record has those of its last run."""
    given = [*options.changes, *(["--shrink"] if options.shrink else [])]
    if given:
        remedy = "Give the recipe with them, or the run directory alone."
        raise UserError("A run directory takes neither overrides nor --shrink.", key="run", value=given, remedy=remedy)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))


def _check(options: argparse.Namespace) -> int:
    from verl_s2d.checks.installation import check_everything
    from verl_s2d.report.table_text import wrapped

    plan = _load(options) if options.recipe else None
    if options.self_test and plan is None:
        raise UserError("The self-test needs models.", key="--self-test", remedy="Give a recipe.")
    findings = []

    def tell(found: Iterable[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            if not options.json:
                print(wrapped(redaction.current().text(finding.text()), " " * 7), flush=True)

    tell(check_everything(plan))
    if options.self_test and all(f.ok for f in findings):
        from verl_s2d.checks.self_test import self_test
        from verl_s2d.workflow.progress import choose_progress

        tell(self_test(plan, choose_progress()))
    if plan is not None and plan.recipe.planner is not None and all(f.ok for f in findings):
        from verl_s2d.planner.probe_plan import check_probe

        tell([check_probe(plan.recipe, run_dir=options.run_dir, seeds=options.seeds)])
    if plan is not None and plan.recipe.plans_pilot and all(f.ok for f in findings):
        from verl_s2d.planner.full_run import check_pilot

        tell([check_pilot(plan.recipe, run_dir=options.run_dir, seeds=options.seeds)])
    if options.json:
        _print_json([{"what": f.what, "ok": f.ok, "detail": f.detail} for f in findings])
    if any(f.bad_input for f in findings):
        return BAD_INPUT
    return OK if all(f.ok for f in findings) else FAILED


def _plan(options: argparse.Namespace) -> int:
    from verl_s2d.checks.sized_plan import sized
    from verl_s2d.report.command_text import plan_text
    from verl_s2d.report.views import plan_view

    plan = _load(options)
    print("verl is asked about every training stage, which takes some seconds", file=sys.stderr, flush=True)
    view = sized(plan, plan_view(plan))
    _print_json(view) if options.json else print(plan_text(view, overrides=options.overrides))
    return OK if view["sizes"]["fits"] else FAILED


def _status(options: argparse.Namespace) -> int:
    from verl_s2d.report.command_text import status_text
    from verl_s2d.report.views import status_view

    view = status_view(_load(options))
    _print_json(view) if options.json else print(status_text(view))
    return OK


def _logs(options: argparse.Namespace) -> int:
    from verl_s2d.report.stage_logs import show_log
    from verl_s2d.stages.planning import plan_to_keep

    if options.recipe.is_dir():
        _refuse_overrides(options)
    given = {"overrides": options.changes, "shrink": _shrink(options)}
    plan = plan_to_keep(options.recipe, options.run_dir, None, None, **given)

    def write(text: str) -> None:
        print(redaction.current().text(text), end="", flush=True)

    show_log(plan, options.stage, lines=options.lines, follow=options.follow, write=write)
    return OK


def _run(options: argparse.Namespace) -> int:
    from verl_s2d.report.command_text import run_text
    from verl_s2d.report.views import plan_view

    plan = _load(options)
    print(run_text(plan_view(plan)), file=sys.stderr, flush=True)
    ok = _build(plan, keep_going=options.keep_going)
    _write_report(plan, options)
    return OK if ok else FAILED


def _build(plan: Plan, *, keep_going: bool = False) -> bool:
    """Build the missing stages of a plan; return whether all succeeded."""
    from verl_s2d.checks.run_checks import RunChecks
    from verl_s2d.workflow.progress import choose_progress
    from verl_s2d.workflow.runner import run_plan

    progress = choose_progress()
    with RunChecks(plan, progress) as check:
        failures = run_plan(plan, progress, check=check, keep_going=keep_going)
    if failures:
        progress.note("Finished stages are kept. Mend the cause, then run the same command again to resume.")
    return not failures


def _evaluate(options: argparse.Namespace) -> int:
    from verl_s2d.report.inputs import finished_rows
    from verl_s2d.report.write import Facts, build_report
    from verl_s2d.stages.evaluate.command import evaluation_plan

    plan = evaluation_plan(_load(options), options.models)
    if not _build(plan):
        return FAILED
    report = build_report(finished_rows(plan), Facts(plan.recipe.name, **plan.facts()))
    if options.json:
        print(report.to_json())
        return OK
    print(report.table())
    for row in plan.rows:
        print(f"{row.name}: {plan.context.directory(row.target) / 'generations.parquet'}")
    return OK


def _probe(options: argparse.Namespace) -> int:
    from verl_s2d.planner.probe import probe_result
    from verl_s2d.planner.probe_page import probe_text
    from verl_s2d.planner.probe_plan import plan_probe

    recipe = load_recipe(options.recipe, options.changes, shrink=_shrink(options))
    probe = plan_probe(recipe, run_dir=options.run_dir, seeds=options.seeds)
    if not _build(probe.plan):
        return FAILED
    result = probe_result(probe)
    _print_json(result) if options.json else print(probe_text(result))
    return OK


def _pilot(options: argparse.Namespace) -> int:
    from verl_s2d.planner.full_run import enter_outcomes, full_costs, full_plan
    from verl_s2d.planner.pilot import PilotFailed, run_pilot, write_pilot
    from verl_s2d.planner.pilot_budget import PilotBudget
    from verl_s2d.planner.pilot_page import pilot_text
    from verl_s2d.planner.pilot_plan import pilot_plan
    from verl_s2d.workflow.progress import choose_progress

    budget = PilotBudget.read(options.budget) if options.budget else None
    recipe = load_recipe(options.recipe, options.changes, shrink=_shrink(options))
    pilot = pilot_plan(recipe, run_dir=options.run_dir, seeds=options.seeds)
    full = full_plan(pilot)
    full_costs(full)  # refuses what verl would not start
    try:
        result = run_pilot(pilot, lambda: full_costs(full), _build, choose_progress().note, budget)
    except PilotFailed:
        return FAILED
    result = write_pilot(enter_outcomes(result, pilot, full, _build), full.context.run_dir)
    _print_json(result) if options.json else print(pilot_text(result, full.context.run_dir))
    return OK


def _report(options: argparse.Namespace) -> int:
    if not options.recipe.is_dir():
        return _write_report(_load(options), options)
    if options.run_dir:
        remedy = "Give a recipe with its run directory, or the run directory alone."
        raise UserError("Two directories are given.", key="--run-dir", value=str(options.run_dir), remedy=remedy)
    _refuse_overrides(options)
    return _write_report(None, options)


def _export(options: argparse.Namespace) -> int:
    from verl_s2d.report.by_row.row_models import export_model, serve_command
    from verl_s2d.report.inputs import finished_rows, found_rows

    seeds = None if options.seed is None else [options.seed]
    if options.recipe.is_dir():
        _refuse_overrides(options)
        rows = found_rows(options.recipe.resolve(), seeds=seeds)
    else:
        recipe = load_recipe(options.recipe, options.changes, shrink=_shrink(options))
        rows = finished_rows(make_plan(recipe, run_dir=options.run_dir, rows=[options.row], seeds=seeds))
    source = export_model(rows, options.row, options.out)
    print(f"copied {source} to {options.out}\nserve it: {serve_command(options.out)}")
    return OK


def _gc(options: argparse.Namespace) -> int:
    from verl_s2d.report.command_text import gc_text
    from verl_s2d.stages.planning import plan_to_keep
    from verl_s2d.workflow.store.gc import collect
    from verl_s2d.workflow.store.run_directory import evaluations

    if options.recipe.is_dir():
        _refuse_overrides(options)
    given = {"overrides": options.changes, "shrink": _shrink(options)}
    plan = plan_to_keep(options.recipe, options.run_dir, options.rows, options.seeds, **given)
    # With --rows only these rows are kept; otherwise also the results of every `evaluate`.
    results = [] if options.rows else evaluations(plan.context.run_dir)
    collection = collect(plan, delete=options.delete, results=results)
    _print_json(collection.data()) if options.json else print(gc_text(collection.data()))
    return OK


def _verify(options: argparse.Namespace) -> int:
    from verl_s2d.report.command_text import verify_text
    from verl_s2d.workflow.store.verify import verify_run

    run = options.run
    if run.is_dir() and options.changes:
        raise UserError(
            "A run directory takes no overrides.", key="run", value=options.changes, remedy="Leave them out."
        )
    verification = verify_run(run if run.is_dir() else make_plan(load_recipe(run, options.changes)).context.run_dir)
    _print_json(verification.data()) if options.json else print(verify_text(verification.data()))
    return OK if verification.ok else FAILED


def _gpu_check(options: argparse.Namespace) -> int:
    from verl_s2d.gpu_check.command import gpu_check

    ok = gpu_check(
        parts=options.parts,
        device=options.device,
        out=options.out,
        model=options.model,
        recipe=options.recipe,
        scratch=options.keep,
        show=lambda line: print(line, flush=True),
    )
    return OK if ok else FAILED


def _prepare(options: argparse.Namespace) -> int:
    from verl_s2d import arguments
    from verl_s2d.data.prepare import Options, prepare
    from verl_s2d.report.command_text import prepare_text

    manifest = prepare(arguments.parse([f"out={options.out}", *options.settings], Options))
    _print_json(manifest) if options.json else print(prepare_text(manifest))
    return OK


def _convert(options: argparse.Namespace) -> int:
    from verl_s2d import arguments
    from verl_s2d.data.formats import convert

    given = [f"file={options.file}", f"out={options.out}", *options.settings]
    print(convert.text_of(convert.convert(arguments.parse(given, convert.Options)), options.out))
    return OK


def _init(options: argparse.Namespace) -> int:
    from verl_s2d.starter.init import InitOptions, init
    from verl_s2d.starter.project_recipes import copy_recipe

    if options.data is None:
        print(copy_recipe(str(options.directory)))
        return OK
    given = {name: getattr(options, name) for name in InitOptions.__dataclass_fields__}
    print(init(InitOptions(**given)))
    return OK


def _schema(options: argparse.Namespace) -> int:
    from verl_s2d.starter.recipe_reference import recipe_reference
    from verl_s2d.starter.recipe_schema import recipe_schema

    print(recipe_reference(), end="") if options.markdown else _print_json(recipe_schema())
    return OK


def _overrides(options: argparse.Namespace) -> int:
    from verl_s2d.starter.verl_command import verl_command

    command = verl_command(options.machine, options.stage, options.gpus)
    print(command.words() if options.shell else command.lines())
    return OK


def _completion(options: argparse.Namespace) -> int:
    from verl_s2d.starter.shell_completion import completion_script

    print(completion_script(command_parser(), options.shell), end="")
    return OK


def _write_report(plan: Plan | None, options: argparse.Namespace) -> int:
    """Write and print the report of a plan's rows; without a plan, of all rows found in the run directory."""
    from verl_s2d.planner.pilot import read_pilot
    from verl_s2d.planner.pilot_page import calibration_text
    from verl_s2d.report.by_row.row_models import model_words
    from verl_s2d.report.inputs import finished_rows, found_rows, recorded_facts, report_of
    from verl_s2d.report.story import ranking
    from verl_s2d.report.write import Facts

    if plan is not None:
        run_dir, rows = plan.context.run_dir, finished_rows(plan)
        facts = Facts(plan.recipe.name, **plan.facts())
    else:
        run_dir = options.recipe.resolve()
        rows, facts = found_rows(run_dir, options.rows, options.seeds), recorded_facts(run_dir)
    if not rows:
        if options.json:
            _print_json({"rows": []})
        else:
            print("No row is finished yet.", file=sys.stderr)
        return FAILED
    report = report_of(rows, run_dir, replace(facts, pilot=read_pilot(run_dir)))
    if options.json:
        print(report.to_json())
        return OK
    print(f"{report.table()}\n")
    for row in ranking(report.data)[:1]:
        print(*model_words(report.data["run"]["models"], row["name"], run_dir), sep="\n")
    if (calibration := calibration_text(run_dir)) is not None:
        print(calibration)
    print(f"report with plots: {run_dir / 'report.html'} (also report.md, report.json)")
    return OK


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": _check,
    "plan": _plan,
    "run": _run,
    "status": _status,
    "logs": _logs,
    "evaluate": _evaluate,
    "report": _report,
    "export": _export,
    "probe": _probe,
    "pilot": _pilot,
    "verify": _verify,
    "gc": _gc,
    "gpu-check": _gpu_check,
    "prepare": _prepare,
    "convert": _convert,
    "init": _init,
    "schema": _schema,
    "overrides": _overrides,
    "completion": _completion,
}

if __name__ == "__main__":
    sys.exit(main())
