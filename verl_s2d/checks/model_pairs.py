"""Check that student and teacher fit together, and that their contexts fit prompts and responses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from verl_s2d.data.model_files import ModelFacts, check_pair, differences, hub_files, read_model
from verl_s2d.data.weights import check_weights
from verl_s2d.errors import UserError
from verl_s2d.sizing.model_shapes import origin
from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built

Pairs = set[tuple[str, str]]
"""Roles of (a student, the teacher whose log-probabilities it learns from)."""


def check_models(plan: Plan) -> list[str]:
    """Check the plan's initial models, as far as they exist; returns warnings.

    Raises:
        UserError: a model cannot be read, its context is too short, tokenizers differ (with the first differing id), or
            the teacher's vocabulary is smaller than the ids in use.
    """
    for model in _externals(plan):
        check_weights(model.location, model.key, revision=model.revision)
    warnings: list[str] = []
    for models, pairs in models_of_rows(plan):
        for model in models.values():
            _check_context(plan, model)
        for student, teacher in sorted(pairs):
            if student in models and teacher in models:
                check_pair(models[student], models[teacher])
                warnings += differences(models[student], models[teacher])
    return list(dict.fromkeys(warnings))


def _externals(plan: Plan) -> list[External]:
    """Return the external models that missing stages read, without duplicates."""
    roles = plan.recipe.models
    found = {e.location: e for node in plan.missing() for e in node.externals.values() if e.key in roles}
    return list(found.values())


def models_of_rows(plan: Plan) -> list[tuple[dict[str, ModelFacts], Pairs]]:
    """Read the models that exist, for every seed: (facts by role, pairs that its rows distil).

    Of hub models only the small files are fetched.
    """
    facts: dict[tuple[str, Path], ModelFacts] = {}
    found: dict[int, tuple[dict[str, ModelFacts], Pairs]] = {}
    for row in plan.rows:
        models, pairs = found.setdefault(row.seed, ({}, set()))
        nodes = ancestors(row.target)
        for role, directory in _directories(plan, nodes).items():
            if (role, directory) not in facts:
                facts[role, directory] = read_model(directory, role)
            models[role] = facts[role, directory]
        for node in nodes:
            asked = [_role(origin(node, role)) for role in node.stage.frozen_roles(node)]
            pairs |= {(_role(origin(node, "model")), model) for model in asked}
    return [(models, {(a, b) for a, b in pairs if a != b}) for models, pairs in found.values()]


def _role(model: External | Node) -> str:
    return model.key if isinstance(model, External) else model.name.partition(" ")[0]


def _directories(plan: Plan, nodes: Iterable[Node]) -> dict[str, Path]:
    directories: dict[str, Path] = {}
    for node in nodes:
        for source in (*node.externals.values(), *node.inputs.values()):
            if isinstance(source, External):
                if source.key in plan.recipe.models and source.key not in directories:
                    directories[source.key] = _directory(source)
            elif source.stage.prepares and source.stage.makes_model(source):
                directory = plan.context.directory(source)
                if is_built(source, directory):
                    directories[_role(source)] = directory
    return directories


def _directory(model: External) -> Path:
    return hub_files(model.location, model.revision, model.key) if model.is_hub else Path(model.location)


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
