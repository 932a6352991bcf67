"""Check that data slices are readable, not empty, and disjoint from each other and from the evaluation problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verl_s2d.data.label_split import require_parts
from verl_s2d.data.pool_key import PROMPTS
from verl_s2d.errors import UserError
from verl_s2d.stages.prepare.overlong import limited
from verl_s2d.stages.prepare.prompt_pool import PromptPool
from verl_s2d.stages.prepare.slice_sizes import (
    Changes,
    evaluation_sets,
    limits_to_come,
    pool_problems,
    train_file,
    validation_set,
)
from verl_s2d.stages.prepare.stage import Slices, slices_settings
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem


def check_counts(plan: Plan) -> None:
    """Raise UserError if the training file has fewer problems than the recipe asks for, as far as it exists."""
    from verl_s2d.data.formats.data_files import row_count

    files = {
        train_file(plan, slices) for seed in {row.seed for row in plan.rows} for slices in _slices_of_seed(plan, seed)
    }
    for file in files - {None}:
        _require_count(plan, file, row_count(file, key="data.train"))


def check_data(plan: Plan) -> dict[Path, tuple[str, list[Problem]]]:
    """Check the files of problems, as far as they exist, with overlong prompts dropped or cut as they will be.

    Returns:
        file -> (its name in messages, its problems).

    Raises:
        UserError: a file is unusable, a label is repeated, slices overlap or would be empty, problems are too few, or
            evaluation problems are among the training problems or the prompts without labels.
    """
    from verl_s2d.data.problems import check_disjoint, read_problems

    def built(node: Node) -> bool:
        return is_built(node, plan.context.directory(node))

    files: dict[Path, tuple[str, list[Problem]]] = {}

    def problems(path: Path, key: str, limits: Changes) -> list[Problem]:
        if path not in files:
            own = key != "data.train"
            # What a stage has written is in verl's columns.
            columns = None if path.is_relative_to(plan.context.run_dir) else plan.recipe.data.columns
            read = read_problems(path, key=key, columns=columns, own_columns=own)
            files[path] = key, limited(read, limits([problem.messages for problem in read]))
        return files[path][1]

    for seed, target in {row.seed: row.target for row in plan.rows}.items():
        limits = limits_to_come(plan, target)
        for slices in _slices_of_seed(plan, seed) if plan.recipe.data.columns else ():
            # Before the evaluation sets, because the names are those of this file's columns.
            problems(train_file(plan, slices), "data.train", limits_to_come(plan, slices))
        evaluation = {
            name: problems(path, f"data.eval.{name}", limits) for name, path in evaluation_sets(plan, target).items()
        }
        for slices in _slices_of_seed(plan, seed):
            train = train_file(plan, slices)
            if train is not None:
                trained_on = problems(train, "data.train", limits_to_come(plan, slices))
                _require_count(plan, train, len(trained_on))
                check_disjoint(trained_on, evaluation)
                if (path := validation_set(plan, target)) is not None:
                    validation = problems(path, "data.validation", limits)
                    check_validation(validation, trained_on)
                    check_disjoint(validation, evaluation, role="validation")
            if built(slices):
                check_slices(plan.context.directory(slices))
        held = [*evaluation.values(), *(members for key, members in files.values() if key == "data.validation")]
        for pool in (node for node in plan.order if isinstance(node.stage, PromptPool)):
            prompts = pool_problems(plan, pool) or {}
            files |= {file: (PROMPTS, members) for file, members in prompts.items()}
            check_pool([p for members in prompts.values() for p in members], _labelled(plan, seed, files), held)
    return files


def _labelled(plan: Plan, seed: int, files: Mapping[Path, tuple[str, list[Problem]]]) -> list[Problem]:
    """Return the problems with a label of one seed, as far as they exist."""
    from verl_s2d.data.slices import slices_of

    chosen: dict[str, Problem] = {}
    for slices in _slices_of_seed(plan, seed):
        problems = files.get(train_file(plan, slices), ("", []))[1]
        ids = set(slices_of(problems, **slices_settings(slices))["all"]) if problems else ()
        chosen |= {problem.id: problem for problem in problems if problem.id in ids}
    return list(chosen.values())


def check_pool(pool: Sequence[Problem], labelled: Sequence[Problem], held: Sequence[Sequence[Problem]]) -> None:
    """Refuse prompts without labels that are repeated, labelled, or of problems to evaluate or validate on, by text.

    Args:
        held: problems of the evaluation sets and of the validation.

    Raises:
        UserError: with the number of such prompts and one of them.
    """
    from verl_s2d.data.unlabelled import require_distinct

    require_distinct(pool, labelled)
    texts = {problem.text for problems in held for problem in problems}
    shared = [prompt.text for prompt in pool if prompt.text in texts]
    if shared:
        raise UserError(
            f"{len(shared)} prompts without labels are those of evaluation or validation problems.",
            key=PROMPTS,
            value=shared[0],
            remedy="Remove them; an accuracy measured on them means nothing. `verl-s2d convert` with prompts=FILE and "
            "eval.<name>=FILE leaves them out.",
        )


def _require_count(plan: Plan, file: Path, count: int) -> None:
    labels = plan.recipe.data.labels
    if plan.recipe.planner is not None:
        plan.recipe.planner.require_problems(count, "data.train")
    if count < 2:
        raise UserError(
            "A half of the training problems would be empty.",
            key="data.train",
            value=str(file),
            remedy="Give at least 2 labelled problems.",
        )
    if labels is not None and labels > count:
        raise UserError(
            f"There are only {count} training problems.",
            key="data.labels",
            value=labels,
            remedy=f"At most {count}, or null for all.",
        )
    require_parts(count if labels is None else labels, plan.recipe.data.split)


def check_validation(validation: list[Problem], trained_on: list[Problem]) -> None:
    """Raise UserError if training and validation share a problem, by text or by id (the ledger counts labels by id)."""
    for what in ("text", "id"):
        shared = {getattr(p, what) for p in validation} & {getattr(p, what) for p in trained_on}
        if shared:
            raise UserError(
                f"{len(shared)} validation problems are among the training problems, by their {what}.",
                key="data.validation",
                value=min(shared),
                remedy="Remove them from one of the two files." if what == "text" else "Give them ids of their own.",
            )


def _slices_of_seed(plan: Plan, seed: int) -> list[Node]:
    return [n for n in plan.order if isinstance(n.stage, Slices) and n.settings["seed"] == seed]


def check_slices(directory: Path) -> None:
    """Raise UserError if the two halves share a problem by id or text, one is empty, or a prompts file has answers."""
    from verl_s2d.data.problems import read_problems

    halves = {name: read_problems(directory / f"{name}.parquet", key=f"slice {name}") for name in ("1h", "2h")}
    for what in ("id", "text"):
        shared = {getattr(p, what) for p in halves["1h"]} & {getattr(p, what) for p in halves["2h"]}
        if shared:
            raise UserError(
                f"The slice of Stage 3 shares {len(shared)} problems with the slice of earlier stages, "
                f"so its labels would not be fresh.",
                key="data",
                value=min(shared),
                remedy="Remove repeated problems from the training data.",
            )
    for name in ("all", "1h", "2h"):
        twin = read_problems(directory / f"{name}-prompts.parquet", key=f"slice {name}-prompts")
        answered = [p for p in twin if p.ground_truth or set(p.extra_info) - {"index"}]
        if answered:
            raise UserError(
                "A file that must be free of answers has one.",
                key=f"slice {name}-prompts",
                value=answered[0].id,
                remedy=f"Delete {directory} and run again.",
            )
