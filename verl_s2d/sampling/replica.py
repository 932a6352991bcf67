"""One engine, kept busy with parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from verl_s2d.sampling.engine import Completion, Sampler
from verl_s2d.sampling.parts import Part, write_part
from verl_s2d.sampling.request import Settings

SEQUENCES_AHEAD = 1024
"""Another part is taken while fewer sequences than this are unfinished: as many as vLLM works on at once by default on
a large GPU. So the long answers of one part never leave the engine idle."""

Take = Callable[[], Part | None]
Report = Callable[[int, int], None]


@dataclass(eq=False)
class _Open:
    """A part that is being sampled."""

    part: Part
    completions: list[list[Completion] | None]


def sample_parts(
    sampler: Sampler, settings: Settings, take: Take, wrote: Callable[[Part], None], report: Report, *, most_open: int
) -> None:
    """Sample every part that `take` gives, and write it.

    Args:
        take: the next part, None when there is none.
        wrote: hears of each part once its file is in place.
        report: hears, after every pass of the engine, of the finished prompts and their tokens.
        most_open: parts that are worked on at a time, at most.
    """
    # By their token ids, because vLLM renames requests. Equal prompts have equal samples, so any of them will do.
    waiting: dict[tuple[int, ...], list[tuple[_Open, int]]] = defaultdict(list)
    is_open: set[_Open] = set()
    unfinished, prompts, tokens, more = 0, 0, 0, True
    while True:
        while more and len(is_open) < most_open and unfinished * settings.n < SEQUENCES_AHEAD:
            part = take()
            if part is None:
                more = False
                break
            opened = _Open(part, [None] * len(part.prompts))
            is_open.add(opened)
            for place, prompt in enumerate(part.prompts):
                waiting[tuple(prompt)].append((opened, place))
            sampler.submit(part.prompts, settings)
            unfinished += len(part.prompts)
        if not is_open:
            return
        for prompt, completions in sampler.step():
            opened, place = waiting[tuple(prompt)].pop()
            opened.completions[place] = completions
            unfinished -= 1
            prompts, tokens = prompts + 1, tokens + sum(len(c.token_ids) for c in completions)
            if None not in opened.completions:
                write_part(opened.part, opened.completions)
                is_open.remove(opened)
                wrote(opened.part)
        report(prompts, tokens)
