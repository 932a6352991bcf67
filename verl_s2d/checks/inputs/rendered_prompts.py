"""Refuse prompts that a chat template cannot render, loses, makes equal or makes too long, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_s2d.checks.finding import Told
from verl_s2d.checks.inputs.model_pairs import KnownModels
from verl_s2d.data.model_files import ModelFacts, end_warnings
from verl_s2d.data.slices import choose
from verl_s2d.errors import Faults, UserError
from verl_s2d.platforms.template_date import DEFAULT
from verl_s2d.sizing.model_shapes import origin
from verl_s2d.stages.evaluate.stage import Evaluate
from verl_s2d.stages.prepare.overlong import DROP
from verl_s2d.stages.prepare.render_cache import Renderer, rendered
from verl_s2d.validation import suggestion
from verl_s2d.workflow.identity import External
from verl_s2d.workflow.plan import Plan

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem

_SHOWN_CHARACTERS = 600


@dataclass(frozen=True)
class _File:
    """Prompts of one file that stages read: `places` counts them among the prompts of all files."""

    key: str
    problems: list[Problem]
    places: range


def check_prompts(plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]], known: KnownModels) -> Told:
    """Render every prompt of every slice and evaluation set with the chat template of each model that reads it.

    Models and files that a recipe's own script makes are rendered once they exist.

    Args:
        files: file -> (its name in messages, its problems).
        known: models that exist.

    Returns:
        One rendered prompt for each template, with special tokens in brackets; a warning about each model whose files
        disagree about the end of a sequence.

    Raises:
        UserError: a model has no chat template, no template reads an option, or a prompt is not text, cannot be
            rendered, is lost, equals another one or is too long.
    """
    models, read, faults = _models(plan, known), list(_read(plan, files)), Faults()
    for model in models.values():
        with faults.collected():
            _require_template(model)
    for file in read:
        with faults.collected():
            _require_text(file)
    faults.raise_found()
    if not models or not read:
        return Told("rendered when models and data are there")
    problems = [problem for file in read for problem in file.problems]
    trusted = {role: plan.recipe.models[role].trust_remote_code for role in models}
    answers = rendered(
        {role: Renderer(str(model.directory), trust_remote_code=trusted[role]) for role, model in models.items()},
        [problem.messages for problem in problems],
        plan.recipe.data.chat_template,
        plan.recipe.data.template_date,
    )
    for role, answer in answers.items():
        with faults.collected():
            _require_rendered(role, answer, read)
    faults.raise_found()
    _require_options_read(plan.recipe.data.chat_template, answers)
    _require_date_read(plan.recipe.data.template_date, answers)
    for role, answer in answers.items():
        with faults.collected():
            _require_embedded(models[role], answer)
        for file in read:
            with faults.collected():
                _require_whole(role, answer, file)
                _require_short(plan, models[role], answer, file)
    faults.raise_found()
    warnings = [line for role, answer in answers.items() for line in end_warnings(models[role], answer["end"])]
    return Told(_shown(answers, len(problems)) + _left_out(plan, files), warnings)


def _models(plan: Plan, known: KnownModels) -> dict[str, ModelFacts]:
    """Return the models that exist and whose templates render prompts, as they are or after training."""
    roles = set()
    for node in plan.order:
        if "model" in node.sources:
            source = origin(node, "model")
            roles.add(source.key if isinstance(source, External) else source.name.partition(" ")[0])
    # Seeds differ in weights only.
    return {role: facts for models, _ in known for role, facts in models.items() if role in roles}


def _read(plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]]) -> Iterator[_File]:
    """Yield the problems that stages read: of the training problems those with a label in some seed."""
    first, labels = 0, plan.recipe.data.labels
    for key, problems in files.values():
        if key == "data.train" and labels is not None:
            chosen = {i for row in plan.rows for i in choose([p.id for p in problems], labels, row.seed)["all"]}
            problems = [problem for problem in problems if problem.id in chosen]
        yield _File(key, problems, range(first, first + len(problems)))
        first += len(problems)


def _require_template(model: ModelFacts) -> None:
    if not model.chat_template:
        raise UserError(
            f"The tokenizer of the {model.role} has no chat template, so that prompts cannot be rendered.",
            key=model.key,
            value=str(model.directory),
            remedy="Add a chat_template to the model's tokenizer.",
        )


def _require_text(file: _File) -> None:
    for problem in file.problems:
        for message in problem.messages:
            if not isinstance(message["content"], str):
                raise UserError(
                    f"The content of a message is no text (problem {problem.id}).",
                    key=f"{file.key}: prompt",
                    value=message["content"],
                    remedy="Write the content of every message as one text.",
                )


def _require_rendered(role: str, answer: Mapping[str, Any], read: list[_File]) -> None:
    if "refused" in answer:
        raise UserError(answer["refused"], key=role, remedy="Look at the files of the model's tokenizer.")
    if "failed" in answer:
        file = next(file for file in read if answer["failed"] in file.places)
        problem = file.problems[answer["failed"] - file.places.start]
        raise UserError(
            f"The chat template of the {role} cannot render problem {problem.id}: {answer['reason']}",
            key=f"{file.key}: prompt",
            value=problem.messages,
            remedy="Write the messages as the template takes them, or set what it asks for under data.chat_template.",
        )


def _require_options_read(options: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]]) -> None:
    names = set().union(*(answer["reads"] for answer in answers.values()))
    for name, value in options.items():
        if name not in names:
            raise UserError(
                "No model's chat template reads this option.",
                key=f"data.chat_template.{name}",
                value=value,
                remedy=suggestion(name, sorted(names)),
            )


def _require_date_read(date: str, answers: Mapping[str, Mapping[str, Any]]) -> None:
    if date != DEFAULT and not any("strftime_now" in answer["reads"] for answer in answers.values()):
        raise UserError(
            "No model's chat template prints the date.",
            key="data.template_date",
            value=date,
            remedy="Remove it.",
        )


def _require_embedded(model: ModelFacts, answer: Mapping[str, Any]) -> None:
    if answer["largest"] >= model.vocabulary:
        raise UserError(
            f"A prompt holds the token {model.tokens.get(answer['largest'])!r} with the id {answer['largest']}, and "
            f"the embedding of the {model.role} ends at {model.vocabulary - 1}.",
            key=model.key,
            value=str(model.directory),
            remedy="Use a model whose embedding covers its tokenizer, or remove the token from template and prompts.",
        )


def _require_whole(role: str, answer: Mapping[str, Any], file: _File) -> None:
    lost = [place for place in answer["empty"] if place in file.places]
    if lost:
        problem = file.problems[lost[0] - file.places.start]
        raise UserError(
            f"{len(lost)} prompts come out of the chat template of the {role} without the text of their last message, "
            f"the first for problem {problem.id}.",
            key=f"{file.key}: prompt",
            value=problem.messages,
            remedy="Write the messages as the template takes them: role user, content a text that is not empty.",
        )
    known: dict[str, Problem] = {}
    for place, problem in zip(file.places, file.problems, strict=True):
        twin = known.setdefault(answer["texts"][place], problem)
        if twin is not problem:
            raise UserError(
                f"The chat template of the {role} makes equal prompts of problems {twin.id} and {problem.id}.",
                key=f"{file.key}: prompt",
                value=problem.messages,
                remedy="Remove one of them, or write the messages as the template takes them.",
            )


def _require_short(plan: Plan, model: ModelFacts, answer: Mapping[str, Any], file: _File) -> None:
    limit, lengths = plan.recipe.data.prompt_tokens, [answer["tokens"][place] for place in file.places]
    longest = max(lengths)
    if longest > limit:
        room = model.context is None or longest + plan.recipe.data.response_tokens <= model.context
        longer = [problem.id for problem, length in zip(file.problems, lengths, strict=True) if length > limit]
        raise UserError(
            f"{len(longer)} of {len(lengths)} prompts are longer than {limit} tokens with the chat template of the "
            f"{model.role}, for example problem {longer[0]}; the longest has {longest}.",
            key="data.prompt_tokens",
            value=limit,
            remedy=f"{f'Set it to {longest}, or remove' if room else 'Remove'} these problems from {file.key}.",
        )
    sampled = max((n.stage.response_tokens(n) for n in plan.order if isinstance(n.stage, Evaluate)), default=0)
    if file.key.startswith("data.eval") and model.context is not None and longest + sampled > model.context:
        raise UserError(
            f"The longest prompt ({longest} tokens) and its response ({sampled}) exceed the context of the "
            f"{model.role}, {model.context} tokens.",
            key="evaluation.max_tokens",
            value=sampled,
            remedy=f"At most {max(0, model.context - longest)}.",
        )


def _left_out(plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]]) -> str:
    """Count the problems that are dropped for their prompts, for each file."""
    if plan.recipe.data.overlong_prompts != DROP:
        return ""
    from verl_s2d.data.formats.data_files import row_count

    dropped = {key: row_count(path, key=key) - len(problems) for path, (key, problems) in files.items()}
    told = ", ".join(f"{count:,} of {key}" for key, count in dropped.items() if count)
    return f"\ndropped because they are longer than {plan.recipe.data.prompt_tokens} tokens: {told or 'none'}"


def _shown(answers: Mapping[str, Mapping[str, Any]], count: int) -> str:
    """Describe the result: equal prompts of several models are shown once."""
    roles: dict[str, list[str]] = {}
    for role, answer in answers.items():
        roles.setdefault(answer["shown"], []).append(role)
    longest = max(length for answer in answers.values() for length in answer["tokens"])
    lines = [f"{count:,} rendered, the longest has {longest} tokens"]
    for text, names in roles.items():
        half = _SHOWN_CHARACTERS // 2
        short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]} ... {text[-half:]}"
        lines += [f"the first one, as the {' and the '.join(names)} reads it:", *short.splitlines()]
    return "\n".join(lines)
