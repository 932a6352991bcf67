"""Check stages that only sample: their GPUs, tensor parallelism and vLLM arguments."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from verl_s2d.errors import Faults, UserError
from verl_s2d.platforms.device import accelerator_here
from verl_s2d.sizing.cache import cache_use, waste_warning
from verl_s2d.sizing.layouts import check_sampler
from verl_s2d.sizing.model_shapes import Models
from verl_s2d.stages.prepare.slice_sizes import slice_size
from verl_s2d.stages.rollouts.stage import Rollouts
from verl_s2d.stages.shared.sampling_stage import SamplingStage, engine
from verl_s2d.validation import suggestion
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.plan import Plan


def check_samplers(plan: Plan, nodes: Iterable[Node]) -> None:
    """Check the stages that only sample.

    Raises:
        UserError: the installed vLLM lacks an argument, there is no GPU here and no RAY_ADDRESS, or
            tensor_parallel_size does not fit a node or the model's heads.
    """
    models, faults = Models(plan), Faults()
    for node in nodes:
        if isinstance(node.stage, SamplingStage):
            with faults.collected():
                _check_arguments(node)
            with faults.collected():
                if plan.context.device != "cpu":
                    _check_place(node)
                    check_sampler(node, models.shape(node), plan.context.cluster)
            with faults.collected():
                _check_length(plan, node)
    faults.raise_found()


def cache_warnings(plan: Plan, nodes: Iterable[Node]) -> list[str]:
    """Return warnings about caches whose rollouts are mostly unused."""
    warnings = []
    for node in nodes:
        if isinstance(node.stage, Rollouts):
            use = cache_use(node, plan.order, slice_size(plan, node, expected=plan.recipe.data.expected.get("train")))
            if use is not None and (warning := waste_warning(node, use)):
                warnings.append(warning)
    return warnings


def _check_arguments(node: Node) -> None:
    known = engine_arguments()
    for name, value in engine(node).items() if known else ():
        if name not in known:
            raise UserError(
                f"{node.name}: the installed vLLM has no such argument.",
                key=f"{node.stage.section}.engine.{name}",
                value=value,
                remedy=suggestion(name, known),
            )


def _check_length(plan: Plan, node: Node) -> None:
    needed = plan.recipe.data.prompt_tokens + node.stage.response_tokens(node)
    longest = engine(node).get("max_model_len")
    if longest is not None and longest < needed:
        raise UserError(
            f"{node.name}: the engine takes fewer tokens than prompt and response have ({needed}).",
            key=f"{node.stage.section}.engine.max_model_len",
            value=longest,
            remedy=f"Leave it out, or at least {needed}.",
        )


def _check_place(node: Node) -> None:
    if not accelerator_here() and not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"{node.name} samples on the GPUs of the Ray cluster, which is this machine without RAY_ADDRESS, and this "
            "one shows no GPU.",
            key="cluster.device",
            value="cuda",
            remedy="Set RAY_ADDRESS, run the command on a machine that has GPUs, or choose the device cpu.",
        )


@functools.cache
def engine_arguments() -> frozenset[str]:
    """Read the arguments of the installed vLLM's LLM from its source, as importing it is slow; empty without vLLM."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    file = Path(next(iter(spec.submodule_search_locations))) / "engine" / "arg_utils.py"
    if not file.is_file():
        return frozenset()
    classes = [c for c in ast.parse(file.read_text()).body if isinstance(c, ast.ClassDef) and c.name == "EngineArgs"]
    fields = [field.target.id for c in classes for field in c.body if isinstance(field, ast.AnnAssign)]
    return frozenset(name for name in fields if not name.startswith("_"))
