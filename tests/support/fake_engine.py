"""Plays vLLM: samples follow from settings and prompt alone, and prompts end in an order of their own. And a machine
that dies at a chosen moment.

    python fake_engine.py    is `python -m verl_s2d.sampling.replica` with this engine

FAKE_ENGINE (environment, JSON): {"seconds": 0.1}: a step takes so long. {"first": {"seconds": 1, "end": "raise"}}: the
same of that engine which starts first in the directory FAKE_DIRECTORY, and how it ends after some steps: it may
"raise", "exit" or "hang".
"""

from __future__ import annotations

import functools
import json
import os
import random
import sys
import threading
import time
from pathlib import Path

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT))

from verl_s2d.sampling import complete, engine, replica, shards
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
        machine, self._lock = self, threading.Lock()

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
            shards.write_part(part, of_prompts)
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
        with self._lock:
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


class WilfulSampler(FakeSampler):
    """As FAKE_ENGINE says."""

    def __init__(self, **arguments: object):
        super().__init__(**arguments)
        told = json.loads(os.environ.get("FAKE_ENGINE", "{}"))
        first = told.pop("first", {})
        try:
            (Path(os.environ["FAKE_DIRECTORY"]) / "first").touch(exist_ok=False)
            told |= first
        except FileExistsError:
            pass
        self._told = told

    def step(self):
        time.sleep(self._told.get("seconds", 0))
        end = self._told.get("end") if self._steps == 5 else None
        if end == "raise":
            raise RuntimeError("the engine is out of memory")
        if end == "exit":
            os._exit(0)
        if end == "hang":
            time.sleep(600)
        return super().step()


if __name__ == "__main__":
    replica.Sampler = WilfulSampler
    replica.main()
