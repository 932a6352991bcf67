"""Weigh problems in stages 2a and 2b by measured pass rates: node -> command, and file -> trainer.

The weights are those of PACED (objectives.token_weights.paced_problem_weights). They are normalised over all problems
of the file, so they depend on no batch. A problem of weight 0 stays in the data: batches, passes and steps are those of
the same stage without weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.recipe.stage_settings import ProblemWeights
from verl_s2d.stages.pass_rates.stage import PASS_RATES
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.stage import Context

PROBLEM_WEIGHTS = "problem_weights"
"""Setting of a node, and section of `s2d`."""
RATES = "pass_rates"
"""Role of the input with the pass rates."""
RESERVED_WEIGHTS = {f"s2d.{PROBLEM_WEIGHTS}": "Set `problem_weights:` of the stage."}
_FILE = f"s2d.{PROBLEM_WEIGHTS}.path"


class MeasuredWeights(ProblemWeights):
    """The exponents, and the file of pass rates: JSON, problem id -> rate."""

    path: str

    def of(self, problems: Iterable[Any], *, key: str) -> dict[str, float]:
        """Compute the weight of each problem, by id.

        Args:
            problems: ids of the problems that the stage trains on.
            key: of the file that holds them, for messages.

        Raises:
            UserError: the file is unusable, lacks a problem, or makes all weights 0.
        """
        weights = self._read()
        missing = {str(problem) for problem in problems} - weights.keys()
        if missing:
            raise UserError(
                f"{len(missing)} problems of {key} have no pass rate, for example {min(missing)}",
                key=_FILE,
                value=self.path,
                remedy="measure the pass rates on the problems that are trained on",
            )
        return weights

    def _read(self) -> dict[str, float]:
        import torch

        from verl_s2d.objectives.token_weights import paced_problem_weights

        try:
            rates = json.loads(Path(self.path).expanduser().read_text())
            measured = torch.tensor([float(rate) for rate in rates.values()], dtype=torch.float64)
            weights = paced_problem_weights(measured, a=self.a, b=self.b)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"the pass rates cannot be read: {error}",
                key=_FILE,
                value=self.path,
                remedy="give a JSON file {problem id: rate between 0 and 1}",
            ) from error
        self.require_some(rates, key=_FILE, value=self.path)
        silent = int((weights == 0).sum())
        print(f"problem weights: {silent} of {len(rates)} problems weigh nothing", flush=True)
        return dict(zip(map(str, rates), weights.tolist(), strict=True))


def weights_overrides(node: Node, context: Context) -> dict[str, Any]:
    """Set the keys of a command that name the exponents and the measured pass rates; none without weights.

    Raises:
        UserError: the rates have been measured, and give every problem the weight 0.
    """
    if RATES not in node.inputs:
        return {}
    chosen, path = node.settings[PROBLEM_WEIGHTS], context.directory(node.inputs[RATES]) / PASS_RATES
    if path.is_file():
        key = f"stages.{node.kind}.{PROBLEM_WEIGHTS}"
        ProblemWeights(**chosen).require_some(json.loads(path.read_text()), key=key, value=chosen)
    keys = {**chosen, "path": str(path)}
    return {f"+s2d.{PROBLEM_WEIGHTS}.{name}": value for name, value in keys.items()}
