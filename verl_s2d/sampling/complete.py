"""Makes a request's parts complete: takes over what an earlier attempt has left, and samples the rest."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from verl_s2d.sampling import PARTS
from verl_s2d.sampling.engine import check_model, on_cpu
from verl_s2d.sampling.request import Request
from verl_s2d.sampling.shard_worker import ShardWorker, Share
from verl_s2d.sampling.shards import Part, Parts, token_count, write_part

_PROGRESS_SECONDS = 30.0
"""Between two lines of progress. They are written only while engines make steps, and show a stage's watchdog that it
lives: a prompt may take longer than that allows silence."""


def complete(
    request: Request,
    out: Path,
    *,
    name: str,
    replicas: int = 1,
    order: Callable[[Part], float] = lambda part: part.number,
    whole: Callable[[Parts, int], None] = lambda parts, number: None,
) -> Parts:
    """All samples of a request, in parts below `out`.

    Args:
        name: what lines of the log begin with.
        replicas: engines, at most: Ray actors on the cluster of RAY_ADDRESS, or on this machine without one. A single
            engine on a CPU works in this process, without Ray.
        order: parts for which it is smaller are begun first.
        whole: hears the number of every part once its samples are there, also of those from an earlier attempt. What
            it raises ends the sampling.

    Raises:
        UserError: a model that cannot be loaded, or fewer GPUs than the engines need.
        EngineFailed: Ray actors died until no more could be done.
    """
    parts = Parts(out / PARTS, request)
    progress = _Progress(name, len(request.prompts))
    missing = []
    for number in range(len(parts)):
        table = parts.read(number, progress.say)
        if table is None:
            missing.append(number)
        else:
            progress.keep(len(parts[number].prompts), token_count(table))
            whole(parts, number)
    if len(missing) < len(parts):
        progress.say(f"{len(parts) - len(missing)} of {len(parts)} parts are there from an earlier attempt")
    if missing:

        def keep(part: Part, samples: pa.Table) -> None:
            write_part(part, samples)
            progress.keep(len(part.prompts), token_count(samples))
            whole(parts, part.number)

        _sample(request, sorted((parts[number] for number in missing), key=order), replicas, progress, keep)
    progress.show()
    return parts


def _sample(
    request: Request, wanted: list[Part], replicas: int, progress: _Progress, keep: Callable[[Part, pa.Table], None]
) -> None:
    count = min(replicas, len(wanted))
    if count > 1 or not on_cpu(request.device):
        # Ray takes seconds to import, and one engine on a CPU needs none.
        from verl_s2d.sampling.engine_pool import sample_with_engines

        check_model(request.model, context=request.context, trust_remote_code=request.trust_remote_code)
        sample_with_engines(request, wanted, count, progress.say, progress.report, keep)
        return
    started = time.monotonic()
    worker = ShardWorker(request.sampler, request.settings)
    progress.say(f"engine ready in {time.monotonic() - started:.1f} s")
    waiting, share = deque(wanted), Share(len(wanted), request.sequences_at_once)
    while (taken := share.take(waiting)) or share.open:
        for part, samples in share.finish(worker.work(taken)):
            keep(part, samples)
        progress.report(*share.sampled)


class _Progress:
    """Lines of the log: what is there from before, and what has been sampled since."""

    def __init__(self, name: str, total: int):
        self._name, self._total = name, total
        self._kept = self._sampled = (0, 0)
        self._shown = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{self._name}: {text}", flush=True)

    def keep(self, prompts: int, tokens: int) -> None:
        self._kept = (self._kept[0] + prompts, self._kept[1] + tokens)

    def report(self, prompts: int, tokens: int) -> None:
        self._sampled = (prompts, tokens)
        if time.monotonic() - self._shown >= _PROGRESS_SECONDS:
            self.show()

    def show(self) -> None:
        self._shown = time.monotonic()
        prompts, tokens = map(sum, zip(self._kept, self._sampled, strict=True))
        self.say(f"{prompts}/{self._total} prompts, {tokens} tokens")
