"""verl-s2d check | plan | run | status | evaluate | report | verify | gc | gpu-check | prepare.

Exit codes: 0 done, 1 a stage (or check) failed, 2 bad input; interrupted, and to be run again: 130 by Ctrl-C, 143 by
SIGTERM (128 and the signal's number, as a scheduler expects of a job that it has preempted).
"""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from verl_s2d import __version__, redaction
from verl_s2d.errors import UserError
from verl_s2d.platforms.device import accelerator_here
from verl_s2d.recipe.load import load_recipe
from verl_s2d.stages.planning import make_plan
from verl_s2d.workflow.failures import Interrupted
from verl_s2d.workflow.plan import Plan

OK, FAILED, BAD_INPUT = 0, 1, 2
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(argv)
    return guarded(lambda: options.command(options), sys.argv[1:] if argv is None else argv)


def guarded(command: Callable[[], int], words: Sequence[str] = ()) -> int:
    """The exit code of a command, also when it is ended by what a user can do something about, which is then said.

    Args:
        words: of the command line.
    """
    again = " ".join(["verl-s2d", *words])
    try:
        return command()
    except UserError as error:
        print(f"error: {redaction.current().text(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except (Interrupted, KeyboardInterrupt) as interrupt:
        print(
            f"interrupted; everything has been stopped. To go on, run the same command again:\n  {again}",
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
            f"error: {error.strerror}{where}; everything has been stopped, finished stages are whole. Make room, then "
            f"run the same command again:\n  {again}",
            file=sys.stderr,
        )
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verl-s2d", description="Teacher RL, forward-KL warmup, OPD, student RL on verl."
    )
    parser.add_argument("--version", action="version", version=f"verl-s2d {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function, text: str, *, recipe_optional: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        sub.add_argument("recipe", type=Path, nargs="?" if recipe_optional else None, help="recipe yaml")
        sub.add_argument("--rows", type=_names, help="rows, comma separated, or `all` (default: the recipe's)")
        sub.add_argument("--seeds", type=_numbers, help="seeds, comma separated (default: the recipe's)")
        sub.add_argument("--run-dir", type=Path, help="where stages are kept (default: runs/<recipe name>)")
        sub.add_argument("--shrink", action="store_true", help="the same recipe at tiny size on this machine: minutes")
        sub.add_argument("--json", action="store_true", help="print JSON on standard output")
        return sub

    check = command("check", _check, "is everything in place, before anything starts", recipe_optional=True)
    text = "also one step of stage 2b with the student as its own teacher: do the engines agree (takes minutes)"
    check.add_argument("--self-test", action="store_true", help=text)
    plan = command("plan", _plan, "show the graph: what is cached, what each stage will do, need and cost")
    plan.add_argument("--overrides", action="store_true", help="with the exact command of every stage")
    run = command("run", _run, "build what is missing, then report; running again resumes")
    run.add_argument("--keep-going", action="store_true", help="after a failure go on with independent stages")
    command("status", _status, "what is done, running, missing")
    evaluate = command("evaluate", _evaluate, "avg@k of models or finished stages, compared on the recipe's sets")
    model = "name or directory of a stage of the rows, model directory, or hub id"
    evaluate.add_argument("models", nargs="+", metavar="model", help=model)
    command("report", _report, "accuracy and ledger of the finished rows; a run directory will do for the recipe")
    gc = command("gc", _gc, "what no kept row needs: a dry run unless --delete; takes a run directory, too")
    choice = gc.add_mutually_exclusive_group()
    choice.add_argument("--delete", action="store_true", help="remove it")
    choice.add_argument("--dry-run", action="store_true", help="only say what would be removed (default)")
    verify = commands.add_parser("verify", help="read every output of a run and compare it with its digest")
    verify.set_defaults(command=_verify)
    verify.add_argument("run", type=Path, help="run directory, or the recipe whose default run directory it is")
    verify.add_argument("--json", action="store_true", help="print JSON on standard output")
    text = "does all that a recipe needs work on this machine's GPU, and how fast (about ten minutes); run it first"
    gpu = commands.add_parser("gpu-check", help=text, description=text)
    gpu.set_defaults(command=_gpu_check)
    gpu.add_argument("--parts", type=_names, help="names, comma separated (default: all)")
    gpu.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a tiny run that needs no GPU")
    gpu.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="the report (default: gpu-check.json)")
    gpu.add_argument("--model", type=Path, help="directory of real weights for the parts that load a model")
    gpu.add_argument("--recipe", type=Path, help="recipe whose hours are estimated from the speed of this machine")
    gpu.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and models here (default: deleted)")
    text = "DAPO-Math-17k, MATH-500 and AIME in verl's columns: deduplicated, checked for contamination, halved"
    settings = (
        "train, eval (comma separated), template=boxed|dapo, thinking, seed, contamination=report|remove, ngram, "
        "overlap, sources.<set>=<parquet or hub id>; described in verl_s2d/data/prepare.py"
    )
    prepare = commands.add_parser("prepare", help=text, description=text)
    prepare.set_defaults(command=_prepare)
    prepare.add_argument("out", type=Path, help="directory to write")
    prepare.add_argument("settings", nargs="*", metavar="key=value", help=settings)
    prepare.add_argument("--json", action="store_true", help="print the manifest as JSON on standard output")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not integers: {text!r}") from None


def _load(options: argparse.Namespace) -> Plan:
    shrink = ("cuda" if accelerator_here() else "cpu") if options.shrink else None
    recipe = load_recipe(options.recipe, shrink=shrink)
    return make_plan(recipe, run_dir=options.run_dir, rows=options.rows, seeds=options.seeds)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))


def _check(options: argparse.Namespace) -> int:
    from verl_s2d.checks.installation import check_everything

    plan = _load(options) if options.recipe else None
    findings = check_everything(plan)
    if options.self_test:
        if plan is None:
            raise UserError("The self-test needs models.", key="--self-test", remedy="Give a recipe.")
        from verl_s2d.checks.self_test import self_test
        from verl_s2d.workflow.progress import choose_progress

        if all(f.ok for f in findings):
            findings += self_test(plan, choose_progress())
    if options.json:
        _print_json([{"what": f.what, "ok": f.ok, "detail": f.detail} for f in findings])
    else:
        print("\n".join(f.text() for f in findings))
    return OK if all(f.ok for f in findings) else FAILED


def _plan(options: argparse.Namespace) -> int:
    from verl_s2d.checks.sized_plan import sized
    from verl_s2d.report.command_text import plan_text
    from verl_s2d.report.views import plan_view

    plan = _load(options)
    view = sized(plan, plan_view(plan))
    _print_json(view) if options.json else print(plan_text(view, overrides=options.overrides))
    return OK if view["sizes"]["fits"] else FAILED


def _status(options: argparse.Namespace) -> int:
    from verl_s2d.report.command_text import status_text
    from verl_s2d.report.views import status_view

    view = status_view(_load(options))
    _print_json(view) if options.json else print(status_text(view))
    return OK


def _run(options: argparse.Namespace) -> int:
    plan = _load(options)
    ok = _build(plan, keep_going=options.keep_going)
    _write_report(plan, options)
    return OK if ok else FAILED


def _build(plan: Plan, *, keep_going: bool = False) -> bool:
    """Build what a plan misses; whether all of it is there."""
    from verl_s2d.checks.run_checks import RunChecks
    from verl_s2d.workflow.progress import choose_progress
    from verl_s2d.workflow.runner import run_plan

    progress = choose_progress()
    with RunChecks(plan, progress) as check:
        failures = run_plan(plan, progress, check=check, keep_going=keep_going)
    if failures:
        progress.note("Finished stages are kept. To go on after mending the cause, run the same command again.")
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


def _report(options: argparse.Namespace) -> int:
    if not options.recipe.is_dir():
        return _write_report(_load(options), options)
    if options.run_dir:
        remedy = "Give a recipe with its run directory, or the run directory alone."
        raise UserError("Two directories are given.", key="--run-dir", value=str(options.run_dir), remedy=remedy)
    return _write_report(None, options)


def _gc(options: argparse.Namespace) -> int:
    from verl_s2d.report.command_text import gc_text
    from verl_s2d.stages.planning import plan_to_keep
    from verl_s2d.workflow.store.gc import collect
    from verl_s2d.workflow.store.run_directory import evaluations

    plan = plan_to_keep(options.recipe, options.run_dir, options.rows, options.seeds)
    # Rows that are named are all that is kept; otherwise also what `evaluate` was asked for.
    results = [] if options.rows else evaluations(plan.context.run_dir)
    collection = collect(plan, delete=options.delete, results=results)
    _print_json(collection.data()) if options.json else print(gc_text(collection.data()))
    return OK


def _verify(options: argparse.Namespace) -> int:
    from verl_s2d.report.command_text import verify_text
    from verl_s2d.workflow.store.verify import verify_run

    run = options.run
    verification = verify_run(run if run.is_dir() else make_plan(load_recipe(run)).context.run_dir)
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
    from verl_s2d.data.prepare import Options, prepare
    from verl_s2d.recipe import arguments
    from verl_s2d.report.command_text import prepare_text

    manifest = prepare(arguments.parse([f"out={options.out}", *options.settings], Options))
    _print_json(manifest) if options.json else print(prepare_text(manifest))
    return OK


def _write_report(plan: Plan | None, options: argparse.Namespace) -> int:
    """Of the plan's rows, or without one of all rows found in the directory that stands in the recipe's place."""
    from verl_s2d.report.inputs import finished_rows, found_rows, recorded_facts, report_of
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
    report = report_of(rows, run_dir, facts)
    if options.json:
        print(report.to_json())
        return OK
    print(report.table())
    print(f"report with plots: {run_dir / 'report.html'} (also report.md, report.json)")
    return OK


if __name__ == "__main__":
    sys.exit(main())
