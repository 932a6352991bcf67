"""Plays vLLM: samples follow from settings and prompt alone, and prompts end in an order of their own. And a machine
that dies at a chosen moment, and engines that fail in their actors.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import ray

from verl_s2d.sampling import complete, engine, engine_pool, shard_worker, shards
from verl_s2d.sampling.engine_pool import EngineActor
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
    """Ends the process, as a kill does."""


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

        def write_part(part, samples):
            shards.write_part(part, samples)
            machine.whole |= set() if machine.forgets else {tuple(p) for p in part.prompts}

        monkeypatch.setattr(shard_worker, "Sampler", Sampler)
        monkeypatch.setattr(complete, "write_part", write_part)

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
        """Run it; return False when it was killed."""
        self.events, self.dies_at = 0, dies_at
        try:
            main(options)
            return True
        except Killed:
            return False
        finally:
            self.dies_at = None


class WilfulSampler(FakeSampler):
    """As `wilful_actor` was told."""

    def __init__(self, told: dict, directory: Path, **_: object):
        super().__init__()
        self._log = directory / f"steps-{os.getpid()}"
        self._told = {name: value for name, value in told.items() if name != "first"}
        try:
            with (directory / "first").open("x") as first:
                first.write(str(os.getpid()))
            self._told |= told.get("first", {})
        except FileExistsError:
            pass
        (directory / f"{os.getpid()}").write_text(ray.get_runtime_context().get_node_id())
        if self._told.get("end") == "load":
            raise RuntimeError("the engine is out of memory")
        if "child" in self._told:
            # As vLLM's engine is one; it outlives its parent where nobody sees to it.
            subprocess.Popen(["sleep", "600"])

    def step(self):
        time.sleep(self._told.get("seconds", 0))
        end = self._told.get("end") if self._steps == self._told.get("after", 5) else None
        if end == "raise":
            raise RuntimeError("the engine is out of memory")
        if end == "exit":
            os._exit(0)
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "hang":
            time.sleep(600)
        self._log.write_text(str(self._steps + 1))
        return super().step()


def wilful_actor(directory: Path, **told: object) -> type[EngineActor]:
    """Make an actor class whose steps take `seconds`, and whose engines `end` at step `after` (5).

    end: "raise", "exit", "kill", "hang", or "load" to raise before the first step. child: start a process that stays.
    first: the same settings for the actor that starts first in the directory.
    """

    # Ray sends a class that no module has by value, and with it what it was told.
    class Wilful(EngineActor):
        def __init__(self, sampler, settings):
            shard_worker.Sampler = functools.partial(WilfulSampler, told, directory)
            super().__init__(sampler, settings)

    return Wilful


def hold_until_ready(monkeypatch, count: int) -> set[int]:
    """Hand out no shard before `count` engines are ready; returns a set that fills with those that complete some."""
    answer, take, ready, worked = engine_pool._Pool._answer, engine_pool.Share.take, set(), set()

    def watched(self, engine):
        finished = answer(self, engine)
        ready.update({engine.number} if engine.place is not None else ())
        worked.update({engine.number} if finished else ())
        return finished

    def held(self, waiting):
        return take(self, waiting) if len(ready) == count else []

    monkeypatch.setattr(engine_pool._Pool, "_answer", watched)
    monkeypatch.setattr(engine_pool.Share, "take", held)
    return worked
