"""Write the prompt that a teacher sees in place of the student's: instructions, or information that the student lacks.

    {prompt} Be concise.                   CRISP: the student itself with an instruction
    {prompt} The answer is {answer}.       OPSD (arXiv 2601.18734): the student itself, which knows the answer

A template is a Python format string with {prompt}, the last user message. Other fields are columns of the problem:
{answer} its ground truth, others keys of its extra_info. Whatever a column tells the teacher reaches the student's
weights, so its problem counts as a label read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from verl_s2d.validation import Refused

PROMPT, ANSWER = "prompt", "answer"


def columns_of(template: str) -> frozenset[str]:
    """Return the columns that a template reads, beside {prompt}.

    Raises:
        Refused: it is no format string of plain names, or the student's prompt is missing.
    """
    try:
        fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise _refused(f"This is no template: {error}.", template) from None
    for name, spec, how in fields:
        if not name.isidentifier() or spec or how:
            raise _refused(f"A field is a name alone, and {{{name}}} is none.", template)
    names = [name for name, _, _ in fields]
    if PROMPT not in names:
        raise _refused("The teacher would not see the problem.", template)
    return frozenset(names) - {PROMPT}


def teacher_messages(
    template: str, messages: Sequence[Mapping[str, Any]], ground_truth: Any, extra_info: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return a problem's messages with the template around the last one of the user.

    Raises:
        Refused: no message is the user's, or the problem lacks a column.
    """
    places = [place for place, message in enumerate(messages) if message["role"] == "user"]
    if not places:
        raise _refused("A problem has no message of the user.", template)
    values = {ANSWER: ground_truth, **extra_info, PROMPT: messages[places[-1]]["content"]}
    for name in sorted(columns_of(template)):
        if values.get(name) in (None, ""):
            raise Refused(
                f"Problem {extra_info.get('index')} has no {name}.",
                value=template,
                remedy="Use columns that every problem has: answer, or a key of its extra_info.",
            )
    changed = dict(messages[places[-1]], content=template.format(**values))
    return [changed if place == places[-1] else dict(message) for place, message in enumerate(messages)]


def _refused(problem: str, template: str) -> Refused:
    return Refused(problem, value=template, remedy="Write it like '{prompt} Be concise.', other braces as {{ and }}.")
