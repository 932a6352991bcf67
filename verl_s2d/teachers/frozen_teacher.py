"""Compute the logits of frozen models in forward-only engines, one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.workers.engine import BaseEngine

from verl_s2d.objectives.chunks import as_logits
from verl_s2d.objectives.logits import GivenLogits, LinearLogits
from verl_s2d.teachers.lm_head_hook import HeadSeam
from verl_s2d.teachers.megatron import forward, is_megatron, is_pipelined
from verl_s2d.teachers.own_prompt import aligned, with_own_prompts
from verl_s2d.teachers.token_layout import uniform_temperature

T = TypeVar("T")


class FrozenTeacher:
    """Passes the teacher's logits to a function inside the teacher's forward pass.

    They have the student's layout (packing and slice of a parallel sequence): same micro-batch, same kind of engine.

    Args:
        engine: a forward-only engine, initialised.
        linear: pass hidden states and head instead of logits.
    """

    def __init__(self, engine: BaseEngine, *, linear: bool):
        self._engine = engine
        self._seam = HeadSeam(engine.module) if linear else None
        self._pipelined = None
        if is_megatron(engine) and is_pipelined():
            from verl_s2d.teachers.pipelined_teacher import PipelinedTeacher

            self._pipelined = PipelinedTeacher(engine)

    def precede(self, student: BaseEngine, loss: Callable[..., Any]) -> None:
        """Run a pipelined teacher's pass before each pass that the student makes with `loss`."""
        if self._pipelined is None:
            return
        run, teacher = student.forward_backward_batch, self._pipelined

        def forward_backward_batch(data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
            if loss_function is loss:
                teacher.run(data)
            return run(data, loss_function, forward_only)

        student.forward_backward_batch = forward_backward_batch

    def consult(self, micro_batch: TensorDict, use: Callable[[torch.Tensor | LinearLogits], T]) -> T:
        """Return use(teacher) for a micro-batch; teacher is (tokens, V_t) logits, or LinearLogits of as many tokens.

        A tensor of logits has been divided by the micro-batch's temperature; LinearLogits have not. On Megatron both
        are this rank's shard of the vocabulary.
        """
        if self._pipelined is not None:
            return use(self._pipelined.logits(micro_batch) / uniform_temperature(micro_batch))
        answers: list[T] = []

        def at_head(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            answers.append(use(LinearLogits(hidden.flatten(0, 1), weight, bias)))
            return hidden.new_zeros(*hidden.shape[:2], 1)

        def processor(student_logits: torch.Tensor | None = None, model_output: Any = None, **_: Any):
            if student_logits is None:
                return torch.zeros(()), {}
            if self._seam is None:
                answers.append(use(student_logits.flatten(0, 1)))
            return {}

        with torch.no_grad(), nullcontext() if self._seam is None else self._seam.using(at_head):
            if is_megatron(self._engine):
                forward(self._engine, micro_batch, processor)
            else:
                self._engine.forward_step(micro_batch, loss_function=processor, forward_only=True)
        return answers[0]


class FrozenTeachers:
    """Passes the logits of several frozen models to one function, inside the forward passes of all of them.

    A sharded engine gathers its output embedding only during its own forward pass, so the passes are nested. Roles with
    the same engine share a pass.

    Args:
        engines: role -> forward-only engine, initialised.
        linear: pass hidden states and heads instead of logits.
        own_prompts: roles that read the micro-batch's OWN_PROMPTS; they share no engine with other roles.
    """

    def __init__(self, engines: Mapping[str, BaseEngine], *, linear: bool, own_prompts: frozenset[str] = frozenset()):
        self._of_role, self._linear = {role: id(engine) for role, engine in engines.items()}, linear
        self._teachers = {id(engine): FrozenTeacher(engine, linear=linear) for engine in engines.values()}
        self._with_own_prompts = {self._of_role[role] for role in own_prompts}

    def precede(self, student: BaseEngine, loss: Callable[..., Any]) -> None:
        """Run FrozenTeacher.precede for every engine."""
        for teacher in self._teachers.values():
            teacher.precede(student, loss)

    def consult(
        self,
        micro_batch: TensorDict,
        use: Callable[[Mapping[str, GivenLogits | LinearLogits]], T],
        *,
        lay: Callable[[torch.Tensor], torch.Tensor],
    ) -> T:
        """Return use(role -> logits) for a micro-batch; logits as in FrozenTeacher.consult, in the student's rows.

        Args:
            lay: moves values of packed tokens to the rows of the student's logits.
        """
        own = with_own_prompts(micro_batch) if self._with_own_prompts else micro_batch
        padded = self._linear and not tu.get_non_tensor_data(micro_batch, key="use_remove_padding", default=True)

        def ask(waiting: list[int], found: dict[int, GivenLogits | LinearLogits]) -> T:
            if not waiting:
                return use({role: found[engine] for role, engine in self._of_role.items()})
            engine, *others = waiting
            other_prompts = engine in self._with_own_prompts

            def add(logits: torch.Tensor | LinearLogits) -> T:
                logits = as_logits(logits)
                if other_prompts:
                    logits = aligned(logits, micro_batch, own, lay, padded=padded)
                return ask(others, found | {engine: logits})

            return self._teachers[engine].consult(own if other_prompts else micro_batch, add)

        return ask(list(self._teachers), {})
