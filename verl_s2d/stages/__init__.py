"""Implement the method, one folder for each kind of stage.

| stage | folder | trained model | states | signal |
|---|---|---|---|---|
| 1, teacher RL | grpo | teacher | its own rollouts | verifier, group-relative advantage |
| rollout cache | rollouts | none | the teacher's rollouts | none |
| proposals | g_zero | none | questions and hints of the student | hint-delta, for prompts of 2a and 2b |
| pass rates | pass_rates | none | rollouts of the model trained next | verifier, for weights of problems in 2a and 2b |
| 2a, warmup | warmup | student | cached teacher rollouts | exact forward KL to the teacher |
| 2b, OPD | opd | student | its own rollouts | teacher: sampled advantage or exact divergence; Uni-OPD: verifier too |
| 3, student RL | grpo | student | its own rollouts | verifier, on labels not read before; with credit: teacher too |

Further folders: prepare (a recipe's scripts, the limit of prompts, slices of the labels, prompts without labels),
evaluate (avg@k), merge (adapters into weights), average (weights of several models), compare (a student with a teacher
on rollouts of both, for the probe), shared (code of several stages).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl_s2d.workflow.stage import Stage


@cache
def stages() -> Mapping[str, Stage]:
    """List the stages of this package by kind."""
    from verl_s2d.stages.average.stage import Average
    from verl_s2d.stages.compare.stage import Compare
    from verl_s2d.stages.evaluate.stage import Evaluate
    from verl_s2d.stages.g_zero.stage import GZero
    from verl_s2d.stages.grpo.stage import Grpo
    from verl_s2d.stages.opd.stage import Opd
    from verl_s2d.stages.pass_rates.stage import PassRates
    from verl_s2d.stages.prepare.prompt_pool import PromptPool
    from verl_s2d.stages.prepare.stage import LimitedPrompts, Script, Slices
    from verl_s2d.stages.rollouts.stage import Rollouts
    from verl_s2d.stages.warmup.stage import Warmup

    prepare = (Script, LimitedPrompts, Slices, PromptPool)
    kinds = (*prepare, GZero, Grpo, Rollouts, PassRates, Warmup, Opd, Average, Compare, Evaluate)
    return {stage.kind: stage() for stage in kinds}
