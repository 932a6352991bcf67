"""Choose the inputs from which a node reads problems: files, a recipe's script, or the stage that limits prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verl_s2d.data.pool_key import PROMPTS
from verl_s2d.errors import UserError
from verl_s2d.platforms.template_date import DEFAULT
from verl_s2d.recipe.schema import Recipe
from verl_s2d.recipe.source import DataScript, ModelSource
from verl_s2d.stages.prepare.overlong import REFUSE
from verl_s2d.stages.prepare.render_cache import tokenizer_digest
from verl_s2d.stages.prepare.stage import POOL, TOKENIZER, VALIDATION, LimitedPrompts
from verl_s2d.workflow.graph import Node
from verl_s2d.workflow.identity import External

Model = Node | External


def column_names(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return the setting of the columns' names, where the recipe has them."""
    columns = recipe.data.columns
    return {"columns": columns.model_dump(exclude_none=True)} if columns else {}


def template_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the chat template; the date only where the recipe has another than the default."""
    date = recipe.data.template_date
    return {"chat_template": recipe.data.chat_template, **({} if date == DEFAULT else {"template_date": date})}


@dataclass(frozen=True)
class ProblemInputs:
    """Inputs of nodes that read problems, made with the functions of a builder."""

    recipe: Recipe
    file: Callable[[str, str], External]
    script: Callable[[], Node]
    pool_script: Callable[[], Node]
    model: Callable[[ModelSource, str], Model]
    node: Callable[..., Node]

    def of(self, *parts: str) -> dict[str, Model]:
        """Return role -> input.

        Args:
            parts: the problems that are read: `train`, `eval`, `validation`.
        """
        if self.recipe.data.overlong_prompts == REFUSE:
            return self._unlimited(*parts)
        return {VALIDATION if VALIDATION in parts else "source": self._limited()}

    def pool(self) -> dict[str, Model]:
        """Return role -> input of the prompts without labels.

        Raises:
            UserError: the recipe has none.
        """
        prompts = self.recipe.data.prompts
        if prompts is None:
            raise UserError(
                "The recipe has no prompts without labels.",
                key=PROMPTS,
                value=None,
                remedy="Add a file of them, or leave out the rows that read the slice `prompts`.",
            )
        if isinstance(prompts, DataScript):
            return {POOL: self.pool_script()}
        return {f"{POOL}.{number}": self.file(PROMPTS, file) for number, file in enumerate(prompts)}

    def limit(self, policy: str) -> tuple[dict[str, Any], dict[str, Model]]:
        """Return the settings and the inputs of a stage that drops or cuts overlong prompts.

        The templates of all models that are read count.
        """
        settings = {"policy": policy, "prompt_tokens": self.recipe.data.prompt_tokens, **template_settings(self.recipe)}
        roles = set().union(*map(self.recipe.roles_of, self.recipe.plain_rows)) & self.recipe.models.keys()
        if self.recipe.planner is not None:
            roles |= set(self.recipe.planner.candidates(self.recipe.models))
        return settings, {f"{TOKENIZER}.{role}": self._tokenizer(role) for role in sorted(roles)}

    def _unlimited(self, *parts: str) -> dict[str, Model]:
        data, found = self.recipe.data, {}
        if VALIDATION in parts and data.validation is not None:
            found[VALIDATION] = self.file("data.validation", data.validation)
        if data.source is not None:
            return found | ({"source": self.script()} if {"train", "eval"} & set(parts) else {})
        if "train" in parts:
            found["train"] = self.file("data.train", data.train)
        if "eval" in parts:
            found |= {f"eval.{name}": self.file(f"data.eval.{name}", file) for name, file in data.eval.items()}
        return found

    def _limited(self) -> Node:
        """Build the stage that drops or cuts overlong prompts of labelled problems."""
        settings, tokenizers = self.limit(self.recipe.data.overlong_prompts)
        settings |= column_names(self.recipe)
        inputs = {**self._unlimited("train", "eval", VALIDATION), **tokenizers}
        seeded = any(isinstance(source, Node) for source in inputs.values())
        return self.node(LimitedPrompts(), "prompts", settings, seeded=seeded, **inputs)

    def _tokenizer(self, role: str) -> Model:
        """Return a model of which only the tokenizer counts: other weights make no other prompts."""
        model = self.model(self.recipe.models[role], role)
        if isinstance(model, Node) or model.is_hub:
            return model
        identity = f"tokenizer:{tokenizer_digest(Path(model.location))}"
        return replace(model, identity=identity, key=f"{TOKENIZER}.{role}")
