"""Implement the subcommand: run the chosen parts on a device and write the report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.gpu_check.gpu_report import PartResult, write_report
from verl_s2d.gpu_check.part_registry import choose
from verl_s2d.gpu_check.part_runner import run_parts
from verl_s2d.gpu_check.part_settings import Settings
from verl_s2d.platforms.device import accelerator_here
from verl_s2d.workflow.interruption import Interruption
from verl_s2d.workflow.store.saved_weights import export_problem


def gpu_check(
    *,
    parts: Sequence[str] | None,
    device: str,
    out: Path,
    model: Path | None,
    recipe: Path | None,
    scratch: Path | None,
    show: Callable[[str], None],
) -> bool:
    """Run the chosen parts and write the report; returns True if no part failed.

    Args:
        scratch: directory for logs and models, which is kept; None for a temporary one.

    Raises:
        UserError: a part is unknown, a directory has no model, or device cuda has no GPU on this machine.
    """
    chosen = choose(parts)
    if device != "cpu" and not accelerator_here():
        raise UserError(
            "No GPU is visible on this machine: there is neither a driver's device file nor nvidia-smi.",
            key="--device",
            value=device,
            remedy="Run the command on the machine with the GPU, or add --device cpu for a tiny run without one.",
        )
    if model is not None and (problem := export_problem(model)) is not None:
        raise UserError(f"This is no model: {problem}.", key="--model", value=str(model), remedy="Give its directory.")
    if recipe is not None and not recipe.is_file():
        raise UserError("There is no such recipe.", key="--recipe", value=str(recipe), remedy="Give a recipe's yaml.")
    with ExitStack() as stack:
        if scratch is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verl-s2d-gpu-check-")))
        scratch.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            device=device,
            directory=str(scratch.resolve()),
            model=None if model is None else str(model.resolve()),
            recipe=None if recipe is None else str(recipe.resolve()),
        )

        def finished(results: list[PartResult]) -> None:
            write_report(scratch / "report.json", settings, results)
            write_report(out, settings, results)

        # A part is in its own session, which signals do not reach; leaving this block ends it.
        stack.enter_context(Interruption(0, show))
        results = run_parts(chosen, settings, show=show, finished=finished)
    failed = [result.name for result in results if not result.ok]
    show(f"{'FAIL: ' + ', '.join(failed) if failed else 'all parts passed'}; report: {out}, which an issue can hold")
    return not failed
