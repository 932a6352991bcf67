"""Teacher and student fit together and fit the lengths asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from verl_s2d.data.model_files import ModelFacts, check_pair, differences, hub_files, read_model
from verl_s2d.data.weights import check_weights
from verl_s2d.errors import UserError
from verl_s2d.workflow.graph import Node, ancestors
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.plan import Plan
from verl_s2d.workflow.store.manifest import is_built

_TEACHERS = ("teacher", "sft_teacher")
_ROLES = ("student", *_TEACHERS)


def check_models(plan: Plan) -> list[str]:
    """Check the models that the plan starts from, as far as they exist; returns warnings.

    Raises:
        UserError: a model that cannot be read, a context too short, tokenizers that differ (with the first differing
            id), or a teacher whose vocabulary is smaller than the ids in use.
    """
    for model in _externals(plan):
        check_weights(model.location, model.key, revision=model.revision)
    warnings: list[str] = []
    for models, bridged in models_of_rows(plan):
        for model in models.values():
            _check_context(plan, model)
        for role in _TEACHERS if bridged and "student" in models else ():
            if role in models:
                check_pair(models["student"], models[role])
                warnings += differences(models["student"], models[role])
    return list(dict.fromkeys(warnings))


def _externals(plan: Plan) -> list[External]:
    """Models that missing stages read and that no stage makes, each once."""
    found = {e.location: e for node in plan.missing() for e in node.externals.values() if e.key in _ROLES}
    return list(found.values())


def models_of_rows(plan: Plan) -> list[tuple[dict[str, ModelFacts], bool]]:
    """For every seed: (facts of the student and teachers that its rows start from and that exist, by their key; whether
    one of its rows distils). Hub models are represented by their small files, which are fetched."""
    facts: dict[tuple[str, Path], ModelFacts] = {}
    found: dict[int, tuple[dict[str, ModelFacts], bool]] = {}
    for row in plan.rows:
        models, bridged = found.get(row.seed, ({}, False))
        nodes = ancestors(row.target)
        for role, directory in _directories(plan, nodes).items():
            if (role, directory) not in facts:
                facts[role, directory] = read_model(directory, role)
            models[role] = facts[role, directory]
        found[row.seed] = (models, bridged or any("teacher" in node.sources for node in nodes))
    return list(found.values())


def _directories(plan: Plan, nodes: Iterable[Node]) -> dict[str, Path]:
    directories: dict[str, Path] = {}
    for node in nodes:
        for source in (*node.externals.values(), *node.inputs.values()):
            if isinstance(source, External):
                if source.key in _ROLES and source.key not in directories:
                    directories[source.key] = _directory(source)
            elif source.stage.prepares and source.stage.makes_model(source):
                directory = plan.context.directory(source)
                if is_built(source, directory):
                    directories[source.name.partition(" ")[0]] = directory
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
