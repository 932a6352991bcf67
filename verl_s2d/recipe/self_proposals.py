"""Define the settings of the stage that makes prompts without labels by hint-delta (G-Zero, arXiv 2605.09959)."""

from __future__ import annotations

import re
import string
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, field_validator

from verl_s2d.data.templates import check_template
from verl_s2d.errors import UserError
from verl_s2d.recipe.stage_settings import Positive, Sampler, Temperature
from verl_s2d.validation import Refused

_PROPOSE = """Write one new problem that can be solved by reasoning, and a short hint for it that does not give the \
answer away. Use exactly this form:
<question>the problem</question>
<hint>the hint</hint>"""

Percentile = Annotated[FiniteFloat, Field(ge=0, le=100)]


class SelfProposals(Sampler):
    """Rounds in which the student proposes questions with hints, kept by hint-delta (G-Zero, arXiv 2605.09959):
    d = mean_t log p(a_t | q) - mean_t log p(a_t | q, h), where a is the student's own answer without the hint.

    Temperature, proposals and percentiles are the publication's. Its prompts and filters of form were not to be had:
    those defaults are ours."""

    temperature: Temperature = 0.7
    rounds: Positive = 1
    """Rounds of the row g-zero: the student of a round proposes the prompts of its stage 2b."""
    proposals: Positive = 2000
    """Questions with hints that are sampled in a round."""
    prompts: list[str] = Field([_PROPOSE], min_length=1)
    """Prompts that ask the student for a question and a hint; each gets an equal share of the proposals. Ours."""
    pattern: str = r"(?s)<question>\s*(?P<question>.+?)\s*</question>\s*<hint>\s*(?P<hint>.+?)\s*</hint>"
    """Regular expression with the groups question and hint, searched in each response. Ours."""
    proposal_tokens: Positive = 512
    """Length at which a proposal is cut. Ours."""
    hint_prompt: str = "{question}\n\nHint: {hint}"
    """Prompt with the hint: a format string with {question}, as it is asked, and {hint}. Ours."""
    percentiles: list[Percentile] = Field([0.0, 50.0], min_length=2, max_length=2)
    """Least and largest percentile of d that is kept. A high d is a hint that gives the answer away."""
    question_characters: list[Positive] = Field([20, 2000], min_length=2, max_length=2)
    """Shortest and longest question. Ours."""
    hint_characters: list[Positive] = Field([5, 400], min_length=2, max_length=2)
    """Shortest and longest hint. Ours."""
    template: str | None = None
    """Text around every question: boxed, dapo or none. Null: boxed where the question asks for no form."""

    @field_validator("pattern")
    @classmethod
    def _has_both_groups(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise Refused(f"This is no regular expression: {error}.", value=pattern, remedy="Correct it.") from None
        if set(groups) != {"question", "hint"}:
            raise Refused(
                "The pattern has to have two named groups, question and hint.",
                value=pattern,
                remedy="Write them as (?P<question>...) and (?P<hint>...).",
            )
        return pattern

    @field_validator("hint_prompt")
    @classmethod
    def _has_both_fields(cls, text: str) -> str:
        try:
            fields = {name for _, name, *_ in string.Formatter().parse(text) if name is not None}
        except ValueError:
            fields = set()
        if fields != {"question", "hint"}:
            remedy = "Write it like '{question} Hint: {hint}', and braces that are text twice."
            raise Refused("The prompt needs the fields {question} and {hint}.", value=text, remedy=remedy)
        return text

    @field_validator("percentiles", "question_characters", "hint_characters")
    @classmethod
    def _in_order(cls, bounds: list[Any]) -> list[Any]:
        if bounds[0] >= bounds[1]:
            raise Refused("The bounds leave nothing.", value=bounds, remedy="Write the smaller one first.")
        return bounds

    @field_validator("template")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            check_template(name)
        except UserError as error:
            raise Refused(error.problem, value=name, remedy=error.remedy) from None
        return name

    @property
    def numbers(self) -> range:
        """Number the rounds from 1."""
        return range(1, self.rounds + 1)
