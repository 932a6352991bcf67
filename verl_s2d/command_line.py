"""Options of the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from verl_s2d import __version__
from verl_s2d.recipe.cli_overrides import is_override

_OVERRIDES = "instead of what the recipe says, as in hydra: stages.opd.steps=50 seeds=[0,1]"
_NOTES = """examples:
  verl-s2d init quickstart                            a recipe of the project
  verl-s2d init mine --student M --teacher M --data F a recipe for your own data
  verl-s2d check mine/recipe.yaml                     before anything starts
  verl-s2d run --shrink mine/recipe.yaml              all of it at tiny size
  verl-s2d run mine/recipe.yaml stages.opd.steps=50   running again resumes
  verl-s2d logs -f mine/recipe.yaml                   follow the running stage

exit codes:
  0    done
  1    a stage or a check failed
  2    bad input, refused before anything started
  130  Ctrl-C; 143 SIGTERM, after saving: the same command resumes

environment variables:
  RAY_ADDRESS             run stages on this Ray cluster, not on a local one
  VERL_PLATFORM=cpu       the platform cpu in a verl command; recipes set it
  VLLM_BATCH_INVARIANT=1  vLLM's switch: samples do not depend on batching
  OMP_NUM_THREADS         threads of a process on a CPU (half of the cores)
  ${oc.env:NAME,default} in a recipe or an override stands for a variable

documentation: docs/index.md of the repository"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; `command` is the name of the command, `changes` the overrides of its recipe.

    Overrides may stand anywhere after the recipe: argparse gives those behind options back.
    """
    parser = command_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        parser.exit()
    options, rest = parser.parse_known_args(argv)
    words = getattr(options, "models", [])
    takes_overrides = hasattr(options, "changes")
    if takes_overrides:
        options.changes = [*options.changes, *filter(is_override, [*words, *rest])]
    if words:
        options.models = [word for word in words if not is_override(word)]
        if not options.models:
            parser.error("name a model")
    if takes_overrides and is_override(getattr(options, "stage", None) or ""):
        options.changes, options.stage = [options.stage, *options.changes], None
    unknown = [word for word in rest if not (takes_overrides and is_override(word))]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.command == "init":
        _require_all_or_none(parser, options)
    return options


def _require_all_or_none(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a message where `init` has some of what a recipe of one's own needs, but not all."""
    needed = {"--student": options.student, "--teacher": options.teacher, "--data": options.data}
    missing = [name for name, value in needed.items() if value is None]
    others = (options.prompts, options.eval, options.gpus, options.steps)
    if 0 < len(missing) < len(needed) or (missing and any(value is not None for value in others)):
        parser.error(f"the following arguments are required: {', '.join(missing)}")


def command_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="verl-s2d",
        description="Teacher RL, forward-KL warmup, OPD, student RL on verl.",
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"verl-s2d {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, text: str, *, recipe_optional: bool = False, rows: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=name)
        sub.add_argument("recipe", type=Path, nargs="?" if recipe_optional else None, help="recipe yaml")
        if name != "evaluate":
            sub.add_argument("changes", nargs="*", metavar="key=value", help=_OVERRIDES)
        if rows:
            sub.add_argument("--rows", type=_names, help="rows, comma separated, or `all` (default: the recipe's)")
        sub.add_argument("--seeds", type=_numbers, help="seeds, comma separated (default: the recipe's)")
        sub.add_argument("--run-dir", type=Path, help="where stages are kept (default: runs/<recipe name>)")
        sub.add_argument("--shrink", action="store_true", help="the same recipe at tiny size on this machine: minutes")
        sub.add_argument("--json", action="store_true", help="print JSON on standard output")
        return sub

    check = command("check", "is everything in place, before anything starts", recipe_optional=True)
    text = "also one step of stage 2b with the student as its own teacher: do the engines agree (takes minutes)"
    check.add_argument("--self-test", action="store_true", help=text)
    plan = command("plan", "show the graph: what is cached, what each stage will do, need and cost")
    plan.add_argument("--overrides", action="store_true", help="with the exact command of every stage")
    run = command("run", "build what is missing, then report; running again resumes")
    run.add_argument("--keep-going", action="store_true", help="after a failure go on with independent stages")
    command("status", "what is done, running, missing")
    text = "the log of the stage that is running or ran last; a run directory will do for the recipe"
    logs = commands.add_parser("logs", help=text, description=text)
    logs.set_defaults(command="logs", changes=[])
    logs.add_argument("recipe", type=Path, help="recipe yaml, or a run directory")
    logs.add_argument("stage", nargs="?", help="name of a stage, as in status")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until no run works in the directory")
    logs.add_argument("-n", "--lines", type=int, default=30, help="last lines to show, 0 for all (default: 30)")
    logs.add_argument("--run-dir", type=Path, help="where stages are kept (default: runs/<recipe name>)")
    logs.add_argument("--shrink", action="store_true", help="of a run with --shrink")
    evaluate = command("evaluate", "avg@k of models or finished stages, compared on the recipe's sets")
    model = "name or directory of a stage of the rows, model directory, or hub id"
    evaluate.add_argument("models", nargs="+", metavar="model", help=f"{model}; or key=value as for run")
    evaluate.set_defaults(changes=[])
    command("report", "accuracy and ledger of the finished rows; a run directory will do for the recipe")
    text = "copy the model of a finished row, checked against its digests: a plain Hugging Face directory"
    export = commands.add_parser("export", help=text, description=text)
    export.set_defaults(command="export", changes=[])
    export.add_argument("recipe", type=Path, help="recipe yaml, or a run directory")
    export.add_argument("row", help="name of the row")
    export.add_argument("out", type=Path, help="directory to write, new or empty")
    export.add_argument("--seed", type=int, help="which model, where the row has one for each seed")
    export.add_argument("--run-dir", type=Path, help="where stages are kept (default: runs/<recipe name>)")
    export.add_argument("--shrink", action="store_true", help="of a run with --shrink")
    command("probe", "no training: how productive is a label on each model, which bridges stand", rows=False)
    pilot = command("pilot", "short stages on few labels predict what each way to spend all would reach", rows=False)
    pilot.add_argument("--budget", help="most sampled tokens, as 5M, or GPU-hours, as 2.5h (default: no limit)")
    gc = command("gc", "what no kept row needs: a dry run unless --delete; takes a run directory, too")
    choice = gc.add_mutually_exclusive_group()
    choice.add_argument("--delete", action="store_true", help="remove it")
    choice.add_argument("--dry-run", action="store_true", help="only say what would be removed (default)")
    verify = commands.add_parser("verify", help="read every output of a run and compare it with its digest")
    verify.set_defaults(command="verify")
    verify.add_argument("run", type=Path, help="run directory, or the recipe whose default run directory it is")
    verify.add_argument("changes", nargs="*", metavar="key=value", help=_OVERRIDES)
    verify.add_argument("--json", action="store_true", help="print JSON on standard output")
    text = "does all that a recipe needs work on this machine's GPU, and how fast (about ten minutes); run it first"
    gpu = commands.add_parser("gpu-check", help=text, description=text)
    gpu.set_defaults(command="gpu-check")
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
    prepare.set_defaults(command="prepare")
    prepare.add_argument("out", type=Path, help="directory to write")
    prepare.add_argument("settings", nargs="*", metavar="key=value", help=settings)
    prepare.add_argument("--json", action="store_true", help="print the manifest as JSON on standard output")
    text = "a parquet, jsonl, json or csv file in any known columns to verl's: duplicates removed, problems held out"
    settings = (
        "question, answer, id (columns), after (a mark before the answer, as ####), data_source, "
        "template=boxed|dapo|none, holdout, seed, eval.<name>=<file>; described in verl_s2d/data/formats/convert.py"
    )
    convert = commands.add_parser("convert", help=text, description=text)
    convert.set_defaults(command="convert")
    convert.add_argument("file", help="the data file")
    convert.add_argument("out", help="directory to write")
    convert.add_argument("settings", nargs="*", metavar="key=value", help=settings)
    text = "a recipe of your own: data converted, sizes by data and machine; or a copy of one of the project's"
    init = commands.add_parser("init", help=text, description=text)
    init.set_defaults(command="init")
    where = "directory to write, whose name is the recipe's; alone: one of the project's recipes, such as quickstart"
    init.add_argument("directory", type=Path, help=where)
    init.add_argument("--student", metavar="MODEL", help="model directory or hub id")
    init.add_argument("--teacher", metavar="MODEL", help="model directory or hub id, same tokenizer")
    init.add_argument("--data", type=Path, metavar="FILE", help="questions and answers, as for convert")
    init.add_argument("--prompts", type=Path, metavar="FILE", help="prompts without labels, for stages 2a and 2b")
    init.add_argument("--eval", type=Path, metavar="FILE", help="evaluation problems (default: some are held out)")
    init.add_argument(
        "--gpus", type=int, metavar="N", help="write it for N GPUs, 0 for a CPU (default: this machine's)"
    )
    init.add_argument("--verifier", default="math", help="name of a verifier (default: math)")
    init.add_argument("--steps", type=int, metavar="N", help="steps of every stage (default: by the data; on a CPU 2)")
    text = "the settings with which a plain verl command runs a trainer of this package on a kind of machine"
    overrides = commands.add_parser("overrides", help=text, description=text)
    overrides.set_defaults(command="overrides")
    overrides.add_argument("machine", choices=["cpu", "gpu"], help="cpu: without an accelerator")
    overrides.add_argument("--stage", choices=["opd", "grpo", "warmup"], default="opd", help="(default: opd)")
    overrides.add_argument("--gpus", type=int, metavar="N", help="workers (default: this machine's GPUs; on a CPU 1)")
    text = "one line, the beginning of the command: $(verl-s2d overrides cpu --shell) key=value ..."
    overrides.add_argument("--shell", action="store_true", help=text)
    text = "the JSON schema of a recipe, for editors"
    schema = commands.add_parser("schema", help=text, description=text)
    schema.set_defaults(command="schema")
    schema.add_argument("--markdown", action="store_true", help="the same as a page of documentation")
    text = 'completion of commands and options; in ~/.bashrc: eval "$(verl-s2d completion bash)"'
    completion = commands.add_parser("completion", help=text, description=text)
    completion.set_defaults(command="completion")
    completion.add_argument("shell", choices=["bash", "zsh"])
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not integers: {text!r}") from None
