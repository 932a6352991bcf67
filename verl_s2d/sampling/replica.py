"""One engine, kept busy with parts; as a process of its own

    python -m verl_s2d.sampling.replica    messages on stdin and stdout, a JSON object a line

    <- {"sampler": {...}, "settings": {...}, "most_open": 4, "at_once": 0}   first
    -> {"ready": 12.3}               seconds that loading took
    -> {"take": true}                answered by one of
    <- {"part": [number, prompts, samples, path, made_from]}
    <- {"part": null}                there are no more
    -> {"wrote": 3}                  the file of the part is in place
    -> {"progress": [prompts, tokens]}   finished so far

that kills its process group, vLLM's processes included, when its input ends before the last part: whoever started it is
gone.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from verl_s2d.platforms.environment import prepare_for_vllm
from verl_s2d.sampling.engine import Completion, Sampler
from verl_s2d.sampling.request import Settings
from verl_s2d.sampling.shards import Part, write_part

SEQUENCES_AHEAD = 1024
"""Another part is taken while fewer sequences than this are unfinished: as many as vLLM works on at once by default on
a large GPU. So the long answers of one part never leave the engine idle."""
_ANSWER_SECONDS = 120
_REPORT_SECONDS = 5.0

Take = Callable[[], Part | None]
Report = Callable[[int, int], None]


@dataclass(eq=False)
class _Open:
    """A part that is being sampled."""

    part: Part
    completions: list[list[Completion] | None]


def sample_parts(
    sampler: Sampler,
    settings: Settings,
    take: Take,
    wrote: Callable[[Part], None],
    report: Report,
    *,
    most_open: int,
    at_once: int = 0,
) -> None:
    """Sample every part that `take` gives, and write it.

    Args:
        take: the next part, None when there is none.
        wrote: hears of each part once its file is in place.
        report: hears, after every pass of the engine, of the finished prompts and their tokens.
        most_open: parts that are worked on at a time, at most.
        at_once: sequences that the engine works on at a time, where it was told.
    """
    # By their token ids, because vLLM renames requests. Equal prompts have equal samples, so any with as many will do.
    waiting: dict[tuple[int, tuple[int, ...]], list[tuple[_Open, int]]] = defaultdict(list)
    is_open: set[_Open] = set()
    unfinished, prompts, tokens, more = 0, 0, 0, True
    ahead = max(SEQUENCES_AHEAD, at_once)
    while True:
        while more and len(is_open) < most_open and unfinished < ahead:
            part = take()
            if part is None:
                more = False
                break
            opened = _Open(part, [None] * len(part.prompts))
            is_open.add(opened)
            for place, prompt in enumerate(part.prompts):
                waiting[part.samples, tuple(prompt)].append((opened, place))
            sampler.submit(part.prompts, replace(settings, n=part.samples))
            unfinished += part.samples * len(part.prompts)
        if not is_open:
            return
        for prompt, completions in sampler.step():
            opened, place = waiting[len(completions), tuple(prompt)].pop()
            opened.completions[place] = completions
            unfinished -= len(completions)
            prompts, tokens = prompts + 1, tokens + sum(len(c.token_ids) for c in completions)
            if None not in opened.completions:
                write_part(opened.part, opened.completions)
                is_open.remove(opened)
                # First, for nobody listens any more after the last part.
                report(prompts, tokens)
                wrote(opened.part)
        report(prompts, tokens)


def main() -> None:
    """A replica that is told what to do."""
    prepare_for_vllm()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    # What libraries print must not look like a message.
    os.dup2(2, 1)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    ended = threading.Event()
    threading.Thread(target=_listen, args=(inbox, ended), daemon=True).start()

    def say(**message: Any) -> None:
        print(json.dumps(message), file=replies)

    def hear() -> dict[str, Any]:
        try:
            return inbox.get(timeout=_ANSWER_SECONDS)
        except queue.Empty:
            raise TimeoutError(f"no answer within {_ANSWER_SECONDS} s from the process that hands out parts") from None

    def take() -> Part | None:
        say(take=True)
        part = hear()["part"]
        return None if part is None else Part(*part)

    said: tuple[float, int] = (0.0, 0)

    def report(prompts: int, tokens: int) -> None:
        nonlocal said
        now = time.monotonic()
        if prompts != said[1] or now - said[0] >= _REPORT_SECONDS:
            said = now, prompts
            say(progress=[prompts, tokens])

    start, began = hear(), time.monotonic()
    sampler = Sampler(**start["sampler"])
    say(ready=time.monotonic() - began)
    settings, limits = Settings(**start["settings"]), {name: start[name] for name in ("most_open", "at_once")}
    sample_parts(sampler, settings, take, lambda part: say(wrote=part.number), report, **limits)
    ended.set()


def _listen(inbox: queue.Queue[dict[str, Any]], ended: threading.Event) -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    if not ended.is_set():
        # Not when it is somebody else's, as that of a shell would be.
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


if __name__ == "__main__":
    main()
