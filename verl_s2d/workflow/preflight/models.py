"""Teacher and student fit together and fit the lengths asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from verl_s2d.errors import UserError
from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.manifest import is_built
from verl_s2d.workflow.planning import Plan
from verl_s2d.workflow.preflight.model_facts import ModelFacts, hub_files, read_model

_BRIDGE_KINDS = ("opd", "warmup")
_ROLES = ("student", "teacher")


def check_models(plan: Plan) -> list[str]:
    """Check the models that the plan starts from, as far as they exist; returns warnings.

    Raises:
        UserError: a model that cannot be read, a context too short, tokenizers that differ (with the first differing
            id), or a teacher whose vocabulary is smaller than the ids in use.
    """
    warnings: list[str] = []
    for models, bridged in models_of_rows(plan):
        for model in models.values():
            _check_context(plan, model)
        if bridged and len(models) == 2:
            check_pair(models["student"], models["teacher"])
            warnings += differences(models["student"], models["teacher"])
    return list(dict.fromkeys(warnings))


def models_of_rows(plan: Plan) -> list[tuple[dict[str, ModelFacts], bool]]:
    """For every seed: (facts of the `student` and `teacher` that its rows start from and that exist, whether one of
    its rows distils). Hub models are represented by their small files, which are fetched."""
    facts: dict[tuple[str, Path], ModelFacts] = {}
    found: dict[int, tuple[dict[str, ModelFacts], bool]] = {}
    for row in plan.rows:
        models, bridged = found.get(row.seed, ({}, False))
        nodes = ancestors(row.target)
        for role, directory in _directories(plan, nodes).items():
            if (role, directory) not in facts:
                facts[role, directory] = read_model(directory, role)
            models[role] = facts[role, directory]
        found[row.seed] = (models, bridged or any(node.kind in _BRIDGE_KINDS for node in nodes))
    return list(found.values())


def _directories(plan: Plan, nodes: Iterable[Node]) -> dict[str, Path]:
    directories: dict[str, Path] = {}
    for node in nodes:
        for source in (*node.externals.values(), *node.inputs.values()):
            if isinstance(source, External):
                if source.key in _ROLES and source.key not in directories:
                    directories[source.key] = hub_files(source) if source.is_hub else Path(source.location)
            elif source.kind == "script" and source.settings["makes"] == "model":
                directory = plan.context.directory(source)
                if is_built(source, directory):
                    directories[source.name.partition(" ")[0]] = directory
    return directories


def _check_context(plan: Plan, model: ModelFacts) -> None:
    data = plan.recipe.data
    if model.context is not None and data.prompt_tokens + data.response_tokens > model.context:
        raise UserError(
            f"Prompt and response ({data.prompt_tokens} + {data.response_tokens} tokens) are longer than the context "
            f"of the {model.role} ({model.context} tokens).",
            key="data.response_tokens",
            value=data.response_tokens,
            remedy=f"At most {max(0, model.context - data.prompt_tokens)} with this prompt length.",
        )


def check_pair(student: ModelFacts, teacher: ModelFacts) -> None:
    """Token ids must mean the same to both, and the teacher must be able to score all of them."""
    if student.tokens != teacher.tokens:
        first = min(
            i for i in student.tokens.keys() | teacher.tokens.keys() if student.tokens.get(i) != teacher.tokens.get(i)
        )
        raise UserError(
            f"The tokenizers differ, first at id {first}: {student.tokens.get(first)!r} for the student, "
            f"{teacher.tokens.get(first)!r} for the teacher.",
            key="teacher",
            value=str(teacher.directory),
            remedy="Distillation compares token by token: choose models that share a tokenizer.",
        )
    highest = max(student.tokens)
    for model in (teacher, student):
        if model.vocabulary <= highest:
            raise UserError(
                f"The vocabulary of the {model.role} has {model.vocabulary} entries, "
                f"but token ids up to {highest} are in use.",
                key=model.role,
                value=str(model.directory),
                remedy="Use a model whose embedding covers its tokenizer.",
            )


def differences(student: ModelFacts, teacher: ModelFacts) -> list[str]:
    """What differs without being wrong: end of sequence, chat template, padded vocabulary."""
    found = []
    if student.eos != teacher.eos:
        found.append(f"end-of-sequence ids differ: student {sorted(student.eos)}, teacher {sorted(teacher.eos)}")
    if student.chat_template != teacher.chat_template:
        found.append("chat templates differ: prompts are rendered with the template of the model that generates")
    if student.vocabulary != teacher.vocabulary:
        found.append(f"vocabularies are padded differently: student {student.vocabulary}, teacher {teacher.vocabulary}")
    return found
