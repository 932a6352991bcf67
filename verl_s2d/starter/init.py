"""Run `verl-s2d init`: a recipe of one's own with converted data, sized by the data and the machine.

Into its directory go recipe.yaml, its schema for editors, and data/*.parquet. The rest is `verl-s2d check` and
`verl-s2d run`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from verl_s2d.data.files import write_json, written_whole
from verl_s2d.data.formats import convert
from verl_s2d.data.formats.data_files import row_count
from verl_s2d.errors import UserError
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.rows import FILE_NAME
from verl_s2d.starter import recipe_schema
from verl_s2d.starter.measure import guessed_prompt, measure, rounded
from verl_s2d.starter.recipe_text import Start, recipe_text
from verl_s2d.starter.this_machine import this_machine

_MOST_HELD_OUT, _SHARE_HELD_OUT = 200, 5
_RESPONSE = {"cuda": 4096, "cpu": 256}
_SHORTEST_RESPONSE = 16
_TRIAL_STEPS = 2
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class InitOptions:
    """Options of `verl-s2d init`."""

    directory: Path
    student: str
    teacher: str
    data: Path
    eval: Path | None = None
    """File of evaluation problems; None: a fifth of the data, at most 200 problems, is held out."""
    prompts: Path | None = None
    """File of questions for stages 2a and 2b, whose answers, if any, are not read."""
    gpus: int | None = None
    """GPUs to write the recipe for, 0 for the CPU; None: those of this machine."""
    verifier: str = "math"
    steps: int | None = None
    """Steps of every training stage; None: passes over the data on GPUs, a trial of two steps on a CPU."""


def init(options: InitOptions) -> str:
    """Write the directory; returns the text to show: the data, and the next commands.

    Raises:
        UserError: the directory has files, or data or models are unusable. Nothing is left behind then.
    """
    directory = options.directory.expanduser()
    if not FILE_NAME.fullmatch(directory.resolve().name):
        remedy = "Use letters, digits, '.', '_', '-'."
        raise UserError("The name is also that of the recipe.", key="directory", value=str(directory), remedy=remedy)
    if directory.exists() and any(directory.iterdir()):
        remedy = "Choose another name, or remove it."
        raise UserError("The directory is not empty.", key="directory", value=str(directory), remedy=remedy)
    existed = directory.exists()
    try:
        return _write(options, directory)
    except BaseException:
        shutil.rmtree(directory / "data", ignore_errors=True)
        for name in (RECIPE, recipe_schema.FILE):
            (directory / name).unlink(missing_ok=True)
        if directory.exists() and not existed:
            directory.rmdir()
        raise


def _write(options: InitOptions, directory: Path) -> str:
    name = directory.resolve().name
    machine = this_machine(options.gpus)
    held = 0 if options.eval else min(_MOST_HELD_OUT, row_count(options.data, key="--data") // _SHARE_HELD_OUT)
    given = {"eval": {convert.HELD_OUT: str(options.eval)}} if options.eval else {"holdout": held}
    given |= {"prompts": str(options.prompts)} if options.prompts else {}
    sets = convert.convert(convert.Options(str(options.data), str(directory / "data"), **given))
    train = sets[convert.TRAIN].problems
    evals = [set_name for set_name in sets if set_name not in (convert.TRAIN, convert.POOL)]
    if len(train) < 4 or not evals:
        remedy = "Give at least 4 problems to train on and 1 to evaluate on."
        raise UserError("There are too few problems.", key="--data", value=len(train), remedy=remedy)

    everything = [problem for made in sets.values() for problem in made.problems]
    names = {"student": options.student, "teacher": options.teacher}
    models = {role: measure(model, role, everything) for role, model in names.items()}
    known = [model.longest_prompt for model in models.values() if model.longest_prompt]
    prompt = rounded(max(known) if known else guessed_prompt(everything))
    context = min((model.context for model in models.values() if model.context), default=None)
    response = _RESPONSE[machine.device] if context is None else min(_RESPONSE[machine.device], context - prompt)
    if response < _SHORTEST_RESPONSE:
        raise UserError(
            f"The longest prompt has {prompt} tokens, which leaves no room for an answer.",
            key="--data",
            value=f"a context of {context} tokens",
            remedy="Remove the longest problems, or take models of a longer context.",
        )
    start = Start(
        name=name,
        student=_place(options.student),
        teacher=_place(options.teacher),
        verifier=_verifier(options.verifier),
        train=len(train),
        evals={set_name: f"data/{set_name}.parquet" for set_name in evals},
        prompts=len(sets[convert.POOL].problems) if options.prompts else 0,
        prompt_tokens=prompt,
        response_tokens=response,
        machine=machine,
        models=models,
        steps=options.steps or (None if machine.gpus else _TRIAL_STEPS),
        guessed=not known,
    )
    if options.prompts and not start.trains("teacher"):
        raise UserError(
            "An update of the teacher does not fit this machine, so no row would read prompts without labels.",
            key="--prompts",
            value=str(options.prompts),
            remedy="Leave it out, choose a smaller teacher, or give more GPUs (--gpus).",
        )
    recipe = directory / RECIPE
    with written_whole(recipe) as temporary:
        temporary.write_text(recipe_text(start))
    load_recipe(recipe)
    write_json(recipe_schema.recipe_schema(), directory / recipe_schema.FILE)
    commands = [
        f"verl-s2d check {recipe}   # models, data, verifier and batches, before anything starts",
        f"verl-s2d plan {recipe}    # memory, disk and cost of every stage",
        f"verl-s2d run {recipe}     # all stages and the report; again: it resumes",
    ]
    return "\n".join([convert.text_of(sets, directory / "data"), f"recipe: {recipe}", "", "next:", *commands])


def _verifier(name: str) -> str:
    """Make the path of a verifier's own file absolute; the names of others stay."""
    file, colon, function = name.rpartition(":")
    return f"{Path(file).expanduser().resolve()}:{function}" if colon else name


def _place(model: str) -> str:
    """Make a local directory's path absolute: in a recipe, relative ones count from its file."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model
