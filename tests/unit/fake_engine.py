"""Plays vLLM: samples follow from settings and prompt alone, and prompts end in an order of their own. And a machine
that dies at a chosen moment."""

from __future__ import annotations

import functools
import os
import random

from verl_s2d.sampling import complete, engine, parts, replica
from verl_s2d.sampling.prompts import prompt_seed


def completions(prompt, settings):
    """As many as asked for, of 1 to max_tokens ids."""
    draw = random.Random(prompt_seed(settings.seed, prompt))
    lengths = [draw.randint(1, settings.max_tokens) for _ in range(settings.n)]
    reasons = ["length" if length == settings.max_tokens else "stop" for length in lengths]
    return [
        engine.Completion([draw.randrange(1000) for _ in range(length)], reason)
        for length, reason in zip(lengths, reasons, strict=True)
    ]


class FakeSampler:
    """Ends one prompt a step, the newest and the oldest by turns."""

    def __init__(self, **_: object):
        self._waiting, self._steps = [], 0

    def submit(self, prompts, settings):
        self._waiting += [(list(prompt), settings) for prompt in prompts]

    def step(self):
        self._steps += 1
        prompt, settings = self._waiting.pop(-(self._steps % 2))
        return [(prompt, completions(prompt, settings))]


class Killed(BaseException):
    """What a process does not survive."""


class Machine:
    """Counts what changes the disk and every step of the engine; at the chosen one the process dies: from then on
    nothing happens any more, whatever is in a `finally`."""

    def __init__(self, monkeypatch):
        self.events, self.dies_at, self.sampled, self.whole, self.forgets = 0, None, [], set(), False
        for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        machine = self

        class Sampler(FakeSampler):
            def submit(self, prompts, settings):
                known = {tuple(p) for p in prompts} & machine.whole
                assert not known, f"sampled again although in a whole part: {known}"
                super().submit(prompts, settings)

            def step(self):
                machine.happens()
                found = super().step()
                machine.sampled += [tuple(prompt) for prompt, _ in found]
                return found

        def write_part(part, of_prompts):
            parts.write_part(part, of_prompts)
            machine.whole |= set() if machine.forgets else {tuple(p) for p in part.prompts}

        monkeypatch.setattr(complete, "Sampler", Sampler)
        monkeypatch.setattr(replica, "write_part", write_part)

    def _watched(self, function):
        @functools.wraps(function)
        def watched(*args, **kwargs):
            self.happens()
            return function(*args, **kwargs)

        return watched

    def happens(self):
        self.events += 1
        if self.dies_at is not None and self.events > self.dies_at:
            raise Killed

    def run(self, main, options, dies_at=None) -> bool:
        """Whether it came to its end; otherwise it was killed."""
        self.events, self.dies_at = 0, dies_at
        try:
            main(options)
            return True
        except Killed:
            return False
        finally:
            self.dies_at = None
