"""An engine kept busy with shards, in the calling process or inside a Ray actor (`engine_pool`)."""

from __future__ import annotations

import gc
import os
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa

from verl_s2d.sampling.engine import Completion, Sampler
from verl_s2d.sampling.request import Settings
from verl_s2d.sampling.shards import Part, samples_table

SEQUENCES_AHEAD = 1024
"""An engine gets another shard while fewer sequences than this are unfinished: as many as vLLM works on at once by
default on a large GPU. So the long answers of one shard never leave the engine idle."""
_ANSWER_SECONDS = 5.0


class Work(NamedTuple):
    """Result of `ShardWorker.work`.

    Attributes:
        finished: number and samples of each shard that is complete.
        unfinished: sequences still to sample.
        prompts, tokens: those already sampled in shards that are not complete.
    """

    finished: list[tuple[int, pa.Table]]
    unfinished: int
    prompts: int
    tokens: int


@dataclass(eq=False)
class _Open:
    """A shard that is being sampled."""

    part: Part
    completions: list[list[Completion] | None]


class ShardWorker:
    """One engine and the shards it samples.

    Args:
        sampler: arguments of `engine.Sampler`, which is loaded here.
        settings: of every prompt; each shard brings its own number of samples.
    """

    def __init__(self, sampler: Mapping[str, Any], settings: Settings):
        self._sampler, self._settings = Sampler(**sampler), settings
        # Keyed by token ids, because vLLM renames requests. Equal prompts with equally many samples have equal
        # samples, so any of them will do.
        self._waiting: dict[tuple[int, tuple[int, ...]], list[tuple[_Open, int]]] = defaultdict(list)
        self._open: set[_Open] = set()
        self._unfinished = 0

    def work(self, parts: Sequence[Part]) -> Work:
        """Take more shards, then sample until one is complete or some seconds have passed."""
        for part in parts:
            self._take(part)
        finished: list[tuple[int, pa.Table]] = []
        deadline = time.monotonic() + _ANSWER_SECONDS
        while self._open and not finished and time.monotonic() < deadline:
            for prompt, completions in self._sampler.step():
                opened, place = self._waiting[len(completions), tuple(prompt)].pop()
                opened.completions[place] = completions
                self._unfinished -= len(completions)
                if None not in opened.completions:
                    finished.append((opened.part.number, samples_table(opened.completions)))
                    self._open.remove(opened)
        sampled = [found for opened in self._open for found in opened.completions if found is not None]
        tokens = sum(len(completion.token_ids) for found in sampled for completion in found)
        return Work(finished, self._unfinished, len(sampled), tokens)

    def close(self) -> None:
        """End the engine in an orderly way: vLLM stops its processes when nothing refers to it any more."""
        del self._sampler
        gc.collect()

    def _take(self, part: Part) -> None:
        opened = _Open(part, [None] * len(part.prompts))
        self._open.add(opened)
        for place, prompt in enumerate(part.prompts):
            self._waiting[part.samples, tuple(prompt)].append((opened, place))
        self._sampler.submit(part.prompts, replace(self._settings, n=part.samples))
        self._unfinished += part.samples * len(part.prompts)


class Share:
    """The shards that one engine has at a time.

    Args:
        most_open: limit of their number.
        at_once: sequences that the engine was told to work on at a time; 0 where vLLM chooses.
    """

    def __init__(self, most_open: int, at_once: int = 0):
        self._most_open, self._ahead = most_open, max(SEQUENCES_AHEAD, at_once)
        self._unfinished = 0
        self.open: dict[int, Part] = {}
        self.sampled = (0, 0)
        """Prompts and tokens of the open shards that are sampled already."""

    def take(self, waiting: deque[Part]) -> list[Part]:
        """Remove from `waiting` the shards that the engine is to begin now."""
        taken = []
        while waiting and len(self.open) < self._most_open and self._unfinished < self._ahead:
            part = waiting.popleft()
            self.open[part.number] = part
            self._unfinished += part.samples * len(part.prompts)
            taken.append(part)
        return taken

    def finish(self, work: Work) -> list[tuple[Part, pa.Table]]:
        """Close the shards that are complete, and return them with their samples."""
        self._unfinished, self.sampled = work.unfinished, (work.prompts, work.tokens)
        return [(self.open.pop(number), samples) for number, samples in work.finished]


_watcher: subprocess.Popen | None = None


def kill_children_at_death() -> None:
    """Have this process's children killed when it ends, however it ends.

    vLLM's processes outlive a parent that was killed, and keep its GPU memory. A shell that waits for the end of a pipe
    notices the death and kills the process group.
    """
    global _watcher
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    command = ["sh", "-c", 'read _; kill -9 -"$0"', str(os.getpid())]
    quiet = subprocess.DEVNULL
    _watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)
