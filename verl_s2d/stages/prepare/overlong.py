"""Apply the policy for prompts longer than data.prompt_tokens: refuse, drop or cut. It holds in every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from verl_s2d.stages.prepare.render_cache import Renderer, cut_prompts, rendered

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem

REFUSE, DROP = "refuse", "drop"
SUMMARY, LIMITED_VALIDATION = "prompts.json", "validation/validation.parquet"
"""Files of the stage that drops or cuts, beside the problems themselves."""
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Limit:
    """The longest prompt and the treatment of longer ones.

    Attributes:
        options: of the chat template.
        date: that a template prints.
    """

    tokens: int
    policy: str
    options: Mapping[str, Any]
    date: str


def shortened(prompts: Sequence[Messages], models: Mapping[str, Renderer], limit: Limit) -> dict[int, Messages | None]:
    """Return what becomes of overlong prompts: place -> shortened messages, or None for a dropped one.

    A prompt is overlong if it is so with the template of any model: all rows then read the same problems. With a
    template that does not render nothing is changed: `check_prompts` refuses it. A prompt that a cut would leave
    without text is dropped.
    """
    if limit.policy == REFUSE or not models or not prompts:
        return {}
    lengths = [a["tokens"] for a in rendered(models, prompts, limit.options, limit.date).values() if "tokens" in a]
    if len(lengths) < len(models):
        return {}
    longer = [i for i, of_prompt in enumerate(zip(*lengths, strict=True)) if max(of_prompt) > limit.tokens]
    if not longer or limit.policy == DROP:
        return dict.fromkeys(longer)
    overlong = [prompts[i] for i in longer]
    return dict(zip(longer, cut_prompts(models, overlong, limit.options, limit.date, limit.tokens), strict=True))


def limited(problems: Sequence[Problem], changes: Mapping[int, Messages | None]) -> list[Problem]:
    """Return problems with cut prompts, and without those that are dropped."""
    kept = [(problem, changes.get(place, problem.messages)) for place, problem in enumerate(problems)]
    return [replace(problem, messages=list(messages)) for problem, messages in kept if messages is not None]
