"""Refuse prompts of a teacher's own that a problem does not fill, its template cannot render, or are too long."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from verl_s2d.checks.finding import Told
from verl_s2d.checks.inputs.model_pairs import KnownModels
from verl_s2d.data.model_files import ModelFacts
from verl_s2d.data.pool_key import PROMPTS
from verl_s2d.data.slices import choose
from verl_s2d.data.teacher_prompt import teacher_messages
from verl_s2d.errors import UserError
from verl_s2d.sizing.model_shapes import origin
from verl_s2d.stages.prepare.render_cache import Renderer, rendered
from verl_s2d.stages.shared.node_settings import merged_verl
from verl_s2d.verl_settings.overrides import value_of
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.plan import Plan

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem

KEY = "stages.opd.teacher_prompt"
_DYNAMIC = "actor_rollout_ref.actor.use_dynamic_bsz"
_TOKENS = ("actor_rollout_ref.ref.log_prob_max_token_len_per_gpu", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu")


def check_teacher_prompts(plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]], known: KnownModels) -> Told:
    """Render the teacher's own prompt of every labelled problem with its chat template.

    Args:
        files: file -> (its name in messages, its problems).
        known: models that exist.

    Raises:
        UserError: a problem lacks a column, the template fails, or prompt and response exceed the teacher's context or
            a micro-batch.
    """
    nodes = [node for node in plan.order if "teacher_prompt" in node.settings]
    problems = _problems(plan, files)
    facts = {role: model for models, _ in known for role, model in models.items()}
    longest = 0
    for node in nodes:
        source = origin(node, "teacher")
        teacher = facts.get(source.key if isinstance(source, External) else source.name.partition(" ")[0])
        if teacher is None or not problems:
            continue
        template = node.settings["teacher_prompt"]
        try:
            prompts = [teacher_messages(template, p.messages, p.ground_truth, p.extra_info) for p in problems]
        except UserError as error:
            raise UserError(error.problem, key=KEY, value=template, remedy=error.remedy) from None
        longest = max(longest, _longest(plan, teacher, prompts, template))
        response = node.settings["response_tokens"]
        verl = merged_verl(node)
        tokens = next((n for key in _TOKENS if isinstance(n := value_of(verl, key), int)), None)
        rooms = {"the teacher's context": teacher.context}
        if value_of(verl, _DYNAMIC):
            rooms[f"a micro-batch ({_TOKENS[0]})"] = tokens
        for what, room in rooms.items():
            if room is not None and longest + response > room:
                raise UserError(
                    f"The teacher's longest prompt ({longest} tokens) and a response ({response}) exceed {what}, "
                    f"{room} tokens.",
                    key=KEY,
                    value=template,
                    remedy="Shorten the template, or leave out the problems with the longest columns.",
                )
    if not nodes:
        return Told("every teacher reads the student's prompts")
    return Told(f"rendered, the longest has {longest} tokens" if longest else "rendered when models and data are there")


def _problems(plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]]) -> list[Problem]:
    """Return the training problems with a label in some seed, and the prompts without labels."""
    pool = [prompt for key, prompts in files.values() if key == PROMPTS for prompt in prompts]
    for key, problems in files.values():
        if key == "data.train":
            if plan.recipe.data.labels is None:
                return problems + pool
            ids, labels = [problem.id for problem in problems], plan.recipe.data.labels
            chosen = {i for seed in {row.seed for row in plan.rows} for i in choose(ids, labels, seed)["all"]}
            return [problem for problem in problems if problem.id in chosen] + pool
    return pool


def _longest(plan: Plan, teacher: ModelFacts, prompts: list, template: str) -> int:
    data = plan.recipe.data
    renderer = Renderer(str(teacher.directory), trust_remote_code=plan.recipe.models[teacher.role].trust_remote_code)
    answer = rendered({"teacher": renderer}, prompts, data.chat_template, data.template_date)["teacher"]
    for fault in ("refused", "failed"):
        if fault in answer:
            raise UserError(
                f"The chat template of the {teacher.role} cannot render the teacher's prompt: "
                f"{answer.get('reason', answer[fault])}",
                key=KEY,
                value=template,
                remedy="Write it as the chat template takes it.",
            )
    return max(answer["tokens"])
