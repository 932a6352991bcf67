"""Check that student and teacher fit together, and that their contexts fit prompts and responses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from verl_s2d.checks.finding import Told
from verl_s2d.data.model_files import (
    ModelFacts,
    check_pair,
    differences,
    hub_files,
    read_model,
    vocabulary_warnings,
)
from verl_s2d.data.weights import check_weights
from verl_s2d.errors import Faults, UserError
from verl_s2d.sizing.model_shapes import origin
from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built

Pairs = set[tuple[str, str]]
"""Roles of (a student, the teacher whose log-probabilities it learns from)."""
KnownModels = list[tuple[dict[str, ModelFacts], Pairs]]
"""For each seed, facts of the models that exist by role, and the pairs that are distilled."""


def check_models(plan: Plan, known: KnownModels) -> Told:
    """Check models alone and in pairs.

    Args:
        known: models that exist (`models_of_rows`).

    Raises:
        UserError: weights are missing, the context is too short, tokenizers differ (with the first differing id), or an
            embedding is smaller than the ids in use.
    """
    faults, warnings = Faults(), []
    for external in _externals(plan):
        with faults.collected():
            check_weights(external.location, external.key)
    for models, pairs in known:
        for model in models.values():
            with faults.collected():
                _check_context(plan, model)
            with faults.collected():
                warnings += vocabulary_warnings(model)
        for student, teacher in sorted(pairs):
            if student in models and teacher in models:
                with faults.collected():
                    check_pair(models[student], models[teacher])
                warnings += differences(models[student], models[teacher])
    faults.raise_found()
    compared = any(pair <= models.keys() for models, pairs in known for pair in map(set, pairs))
    return Told(
        "tokenizers agree id by id, both vocabularies cover them" if compared else "nothing to compare yet",
        list(dict.fromkeys(warnings)),
    )


def describe(plan: Plan, known: KnownModels) -> Told:
    """Describe every model of the recipe."""
    models = {role: facts for of_seed, _ in known for role, facts in of_seed.items()}
    lines = [f"{role}: {models[role].text()}" for role in models]
    lines += [
        f"{role}: not made yet (checked when its script has run), or not used by these rows"
        for role in sorted(plan.recipe.models.keys() - models.keys())
    ]
    return Told("\n".join([f"{len(models)} found", *lines]))


def _externals(plan: Plan) -> list[External]:
    """Return the external models that missing stages read, without duplicates."""
    roles = plan.recipe.models
    found = {e.location: e for node in plan.missing() for e in node.externals.values() if e.key in roles}
    return list(found.values())


def models_of_rows(plan: Plan) -> KnownModels:
    """Read the models that exist, for every seed: (facts by role, pairs that its rows distil).

    Of hub models only the small files are fetched.

    Raises:
        UserError: a model, or the revision of one, that cannot be loaded.
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
    if model.revision is not None:
        raise UserError(
            "verl loads a hub id's default branch, and the hub's cache here does not have this revision whole.",
            key=f"{model.key}.revision",
            value=model.revision,
            remedy=f"hf download {model.location} --revision {model.revision}   (on every node, at the same path)",
        )
    return hub_files(model.location, None, model.key) if model.is_hub else Path(model.location)


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
