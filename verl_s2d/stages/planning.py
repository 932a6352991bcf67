"""Make a plan from a recipe: choose rows, seeds and device, and build the graphs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_s2d import redaction
from verl_s2d.data.label_split import HALF
from verl_s2d.data.pool_key import PROMPTS
from verl_s2d.errors import UserError
from verl_s2d.platforms.device import resolve_device
from verl_s2d.recipe.load import load_recipe
from verl_s2d.recipe.rows import check_rows
from verl_s2d.recipe.schema import Recipe
from verl_s2d.signals.credit.credit_registry import read_credit
from verl_s2d.stages.builder import Builder, Model
from verl_s2d.stages.g_zero.stage import GZero
from verl_s2d.stages.grpo.credit_of_node import CREDIT
from verl_s2d.stages.matching import matched_model
from verl_s2d.stages.opd.stage import Opd
from verl_s2d.stages.prepare.prompt_pool import PromptPool
from verl_s2d.stages.prepare.stage import POOL, labelled_part
from verl_s2d.stages.reserved_keys import check_reserved_keys
from verl_s2d.stages.shared.signal_settings import beside_recipe, decisive_keys, signal_of_recipe
from verl_s2d.stages.warmup.stage import Warmup
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.plan import Plan, Row, default_run_dir
from verl_s2d.workflow.stage import Context
from verl_s2d.workflow.store.run_directory import read_record, recorded_overrides


def make_plan(
    recipe: Recipe, *, run_dir: Path | None = None, rows: list[str] | None = None, seeds: list[int] | None = None
) -> Plan:
    """Resolve rows and seeds (the recipe's own unless given) and build the graphs.

    Rows `["all"]` are those of Recipe.all_rows.

    Raises:
        UserError: unknown rows, unreadable inputs, missing stage settings.
    """
    names = recipe.all_rows if rows == ["all"] else list(dict.fromkeys(rows or recipe.chosen_rows))
    check_rows(names, "--rows", recipe.row_names)
    check_reserved_keys(recipe)
    _check_roles(recipe)
    device = resolve_device(recipe.cluster.device)
    if recipe.cluster.warm_start is True and device != "cpu":
        raise UserError(
            "A warm start forks processes that have imported torch and vLLM, and CUDA does not work in a fork.",
            key="cluster.warm_start",
            value=True,
            remedy="Remove it, or set it to false.",
        )
    if recipe.cluster.side_by_side > 1 and (device != "cpu" or os.environ.get("RAY_ADDRESS")):
        raise UserError(
            "Stages run side by side on device cpu alone, and not on a cluster of RAY_ADDRESS: a stage holds all "
            "accelerators, and verl's TransferQueue has one name in a cluster.",
            key="cluster.side_by_side",
            value=recipe.cluster.side_by_side,
            remedy="Remove it.",
        )
    context = Context(run_dir.resolve() if run_dir else default_run_dir(recipe), recipe.cluster.on(device), device)
    plan = Plan(recipe, build_rows(recipe, names, seeds or recipe.seeds, device), context)
    if rows is None:
        _check_credit(plan)
        _check_data(plan)
    return plan


def plan_to_keep(
    run: Path,
    run_dir: Path | None,
    rows: list[str] | None,
    seeds: list[int] | None,
    *,
    overrides: Sequence[str] = (),
    shrink: str | None = None,
) -> Plan:
    """Plan everything that `gc` keeps: the recipe's rows and seeds, and those of every earlier `run` in the directory.

    Args:
        run: a recipe, or the directory of a run, whose record names recipe, overrides and shrinking of the last run.
        rows, seeds: keep exactly these instead.
        overrides, shrink: for a recipe, as in `load_recipe`.

    Raises:
        UserError: the directory does not name its recipe, the recipe cannot be planned, or its last run had other
            overrides, whose stages would count as waste.
    """
    if run.is_dir():
        record = read_record(run) or {}
        run_dir, run = run, Path(record.get("file", ""))
        overrides, shrink = record.get("overrides", ()), record.get("shrink")
        if not run.is_file():
            raise UserError(
                "The run directory names no existing recipe.",
                key="run",
                value=str(run_dir),
                remedy="Give the recipe: `verl-s2d gc recipe.yaml --run-dir <directory>`.",
            )
        if any(redaction.HIDDEN in override for override in overrides):
            raise UserError(
                "An override of the last run is a secret, which the run directory does not store.",
                key="run",
                value=overrides,
                remedy=f"Give the recipe and all overrides: `verl-s2d gc {run} key=value ... --run-dir <directory>`.",
            )
    recipe = load_recipe(run, overrides, shrink=shrink)
    asked = read_record(run_dir or default_run_dir(recipe)) or {}
    if "overrides" in asked and asked["overrides"] != recorded_overrides(overrides):
        raise UserError(
            "The last run in this directory had other overrides, whose stages would be removed.",
            key="run",
            value=list(overrides),
            remedy=f"Repeat them ({' '.join(asked['overrides']) or 'none'}), or give the run directory.",
        )
    known = [name for name in asked.get("rows", ()) if name in recipe.row_names]
    return make_plan(
        recipe,
        run_dir=run_dir,
        rows=rows or list(dict.fromkeys([*recipe.chosen_rows, *known])),
        seeds=seeds or sorted({*recipe.seeds, *asked.get("seeds", ())}),
    )


def build_rows(recipe: Recipe, names: list[str], seeds: list[int], device: str) -> list[Row]:
    """Build the graphs of the chosen rows, for every seed.

    Raises:
        UserError: a file or model of the recipe cannot be read, or a stage that a row needs has no settings.
    """
    externals: dict[Any, External] = {}
    rows = []
    for seed in seeds:
        for name in names:
            builder = Builder(recipe, name, seed, device, externals, several_seeds=len(seeds) > 1)
            rows.append(Row(name, seed, builder.evaluate(_model(builder, name))))
    return rows


def _model(builder: Builder, name: str) -> Model:
    """Build the last model of a row; for a matched row, the other row's last stage with a budget."""
    chosen = builder.recipe.matched.get(name)
    if chosen is None:
        return builder.recipe.plain_rows[name](builder)
    model, target = _model(builder, chosen.row), _model(builder, chosen.to)
    return matched_model(name, chosen, model, target, builder.slice_sizes)


def _check_credit(plan: Plan) -> None:
    """Raise UserError for a credit in the recipe that no stage of its rows has."""
    stage = plan.recipe.stages.student_rl
    if stage is None or not stage.credit:
        return
    credit = read_credit(beside_recipe(stage.credit, plan.recipe.directory), key="stages.student_rl.credit")
    if not any(node.settings.get(CREDIT) == decisive_keys(credit) for node in plan.order):
        raise UserError(
            "No row of the recipe gives Stage 3 a teacher, so this has no effect.",
            key="stages.student_rl.credit",
            value=stage.credit,
            remedy="Leave it out, or add a row with a teacher, such as half-split.",
        )


def _check_data(plan: Plan) -> None:
    """Raise UserError for prompts without labels, or a split of the labels, that no row of the recipe reads."""
    data = plan.recipe.data
    parts = {node.settings["slice"] for node in plan.order if "slice" in node.settings}
    labelled = {labelled_part(part) for part in parts}
    pools = [node for node in plan.order if isinstance(node.stage, PromptPool)]
    made = [node for node in pools if POOL in node.inputs and isinstance(node.inputs[POOL].stage, GZero)]
    if data.prompts is not None and len(made) == len(pools):
        raise UserError(
            "No row of the recipe reads prompts without labels, so this has no effect.",
            key=PROMPTS,
            value=data.prompts,
            remedy="Leave it out, or add a row that does, such as bridge-unlabelled.",
        )
    if data.split != HALF and not labelled & {"1h", "2h"}:
        raise UserError(
            "No row of the recipe divides the labels, so this has no effect.",
            key="data.split",
            value=data.split,
            remedy="Leave it out, or add a row that does, such as half-split.",
        )


def _check_roles(recipe: Recipe) -> None:
    """Raise UserError for a model in a role that neither a row, a signal nor the planner reads."""
    read = set().union(*map(recipe.roles_of, recipe.plain_rows))
    if recipe.planner is not None:
        read |= set(recipe.planner.candidates(recipe.models))
    for name, default in (("warmup", Warmup.default_signal), ("opd", Opd.default_signal)):
        if section := getattr(recipe.stages, name):
            key = f"stages.{name}.signal"
            read |= set(signal_of_recipe(section.signal, recipe.directory, key=key, default=default).asks)
    for role, source in recipe.models.items():
        if role not in read:
            raise UserError(
                "No row reads a model of this role, and no signal does.",
                key=f"models.{role}",
                value=source.model_dump(exclude_unset=True),
                remedy=f"Remove it, or name it as they do: {', '.join(sorted(read))}.",
            )
