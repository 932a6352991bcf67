"""Measure data and models for a new recipe: tokens of the longest prompt, context, parameters, the chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_s2d.data.model_files import ModelFacts, hub_files, read_model
from verl_s2d.data.problems import Problem
from verl_s2d.errors import UserError
from verl_s2d.sizing.shapes import PUBLISHED, ShapeUnknown, shape_of

_BLOCK = 64


@dataclass(frozen=True)
class Measured:
    """Facts of one model; None where neither a directory, the cache nor the hub gives them."""

    parameters: int | None
    context: int | None
    longest_prompt: int | None
    """Tokens of the longest prompt with the chat template."""
    thinks: bool
    """The chat template knows `enable_thinking`."""


def measure(model: str, role: str, problems: Sequence[Problem]) -> Measured:
    """Read a model's files and render every prompt with its chat template.

    Raises:
        UserError: a local directory that is no model, or a chat template that fails.
    """
    local = Path(model).expanduser()
    try:
        directory = local if local.is_dir() else hub_files(model, None, role)
    except UserError:
        if local.is_absolute():
            raise
        shape = PUBLISHED.get(model)
        return Measured(shape and shape.parameters, None, None, "qwen3" in model.lower())
    facts = read_model(directory, role)
    thinks = "enable_thinking" in (facts.chat_template or "")
    return Measured(_parameters(facts), facts.context, _longest(facts, problems, thinks), thinks)


def rounded(tokens: int) -> int:
    """Round up to whole blocks of 64 tokens."""
    return -(-tokens // _BLOCK) * _BLOCK


def guessed_prompt(problems: Sequence[Problem]) -> int:
    """Estimate the longest prompt's tokens from its characters, generously, where no tokenizer is at hand."""
    return max(sum(len(str(m["content"])) for m in p.messages) for p in problems) // 2 + _BLOCK


def _parameters(facts: ModelFacts) -> int | None:
    try:
        return shape_of(json.loads((facts.directory / "config.json").read_text())).parameters
    except ShapeUnknown:
        return None


def _longest(facts: ModelFacts, problems: Sequence[Problem], thinks: bool) -> int:
    from verl_s2d.sampling.prompts import load_tokenizer, render_prompt

    tokenizer = load_tokenizer(str(facts.directory))
    options = {"enable_thinking": False} if thinks else {}
    try:
        return max(len(render_prompt(tokenizer, problem.messages, options)) for problem in problems)
    except Exception as error:  # templates raise errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The chat template cannot render the problems: {reason}",
            key=facts.role,
            value=str(facts.directory),
            remedy="Give messages that the template knows, or a model whose template takes them.",
        ) from error
