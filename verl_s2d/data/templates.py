r"""Apply and strip prompt templates: the text before and after a problem in a user message.

    boxed   <problem> Please reason step by step, and put your final answer within \boxed{}.
    dapo    Solve the following ... Answer: $Answer ... <problem> Remember to put your answer ... after "Answer:".

`boxed` is the instruction of the authors' repository; `dapo` is that of DAPO-Math-17k as published, which a sibling
paper uses. The paper itself (arXiv 2605.12483) names none. Training and evaluation use the same template.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl_s2d.errors import UserError


@dataclass(frozen=True)
class Template:
    """Text before and after the problem."""

    before: str
    after: str

    def apply(self, problem: str) -> str:
        return f"{self.before}{problem}{self.after}"

    def matches(self, prompt: str) -> bool:
        fits = len(prompt) >= len(self.before) + len(self.after)
        return fits and prompt.startswith(self.before) and prompt.endswith(self.after)


_BOXED = r"Please reason step by step, and put your final answer within \boxed{}."

TEMPLATES = {
    "boxed": Template("", f" {_BOXED}"),
    "dapo": Template(
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n",
        '\n\nRemember to put your answer on its own line after "Answer:".',
    ),
}
# Other spellings of `boxed` in published files: stripped, never written.
_VARIANTS = {"boxed": (Template("", f"\n\n{_BOXED}"), Template("", f"\n{_BOXED}"))}


NONE = "none"
_FORMS = ("\\boxed", "####", "Answer:", "<answer>")
"""Parts of a prompt that ask for a form of answer."""


def template(name: str) -> Template:
    """Return a template by name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in TEMPLATES:
        raise UserError(
            "Unknown prompt template.", key="template", value=name, remedy=f"Choose from {', '.join(TEMPLATES)}."
        )
    return TEMPLATES[name]


def check_template(name: str | None) -> None:
    """Raise UserError for an unknown name of a template; None and `none` are no template."""
    if name not in (None, NONE):
        template(name)


def ask(prompt: str, name: str | None) -> str:
    """Put a problem into a template, in place of one that it has.

    Args:
        name: a template; `none` for the problem alone; None for `boxed`, unless the problem asks for a form of answer.
    """
    if name is None:
        return prompt if any(form in prompt for form in _FORMS) else TEMPLATES["boxed"].apply(prompt)
    problem, _ = strip(prompt)
    return problem if name == NONE else template(name).apply(problem)


def strip(prompt: str) -> tuple[str, str | None]:
    """Strip one template from a prompt; returns (problem, template name), or (prompt, None) without a template.

    `strip(TEMPLATES[name].apply(x)) == (x, name)` for every text x.
    """
    for name, own in TEMPLATES.items():
        for known in (*_VARIANTS.get(name, ()), own):
            if known.matches(prompt):
                return prompt[len(known.before) : len(prompt) - len(known.after)], name
    return prompt, None
