"""Engines as Ray actors, on all nodes of the cluster that have GPUs for them.

Shards are handed out as engines ask for them, so that a slow engine delays nobody. Samples come back to this process,
which alone writes: nodes need no shared directory for them. When an engine dies, its shards go to the others.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.exceptions import RayError

from verl_s2d.errors import UserError
from verl_s2d.logs import without_colour
from verl_s2d.platforms.environment import cpu_environment, cuda_environment
from verl_s2d.sampling.engine import on_cpu
from verl_s2d.sampling.request import Request, Settings
from verl_s2d.sampling.shard_worker import ShardWorker, Share, Work, kill_children_at_death
from verl_s2d.sampling.shards import Part

Keep = Callable[[Part, pa.Table], None]
Report = Callable[[int, int], None]

_LOOK_SECONDS = 0.5
_LOAD_SECONDS = 3600.0
"""For Ray to place an engine, and for the engine to load its model."""
_SILENT_SECONDS = 1800.0
"""An engine answers every few seconds while it works. The watchdog of a stage sees only that all are silent."""
_FETCH_SECONDS = 120.0
_END_SECONDS = 30.0
_TRIES = 3
"""Engines that may die over the same shard."""


class EngineFailed(Exception):
    """Several engines died over one shard, or no engine is left. The message has the cause and the log's place."""


class Place(NamedTuple):
    """Place of an engine: node, process and GPUs in words, and the file of its messages on that node."""

    words: str
    log: str


class EngineActor(ShardWorker):
    """The worker as a Ray actor. vLLM is imported here, never in the process that hands out shards."""

    def __init__(self, sampler: Mapping[str, Any], settings: Settings):
        kill_children_at_death()
        super().__init__(sampler, settings)

    def place(self) -> Place:
        """Return where the engine runs, once it is loaded."""
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU") or []
        shown = f", GPU {','.join(gpus)}" if gpus else ""
        try:
            log = os.readlink("/proc/self/fd/2")
        except OSError:
            log = "the directory of Ray's logs"
        return Place(f"node {ray.util.get_node_ip_address()}, process {os.getpid()}{shown}", log)


def sample_with_engines(
    request: Request, parts: Iterable[Part], count: int, say: Callable[[str], None], report: Report, keep: Keep
) -> None:
    """Sample shards with `count` engines on the cluster of RAY_ADDRESS, or on this machine without one.

    Args:
        say: hears of engines that are ready, and of those that died.
        report: hears of prompts and tokens sampled in shards that are not complete.
        keep: gets every complete shard with its samples.

    Raises:
        UserError: fewer GPUs than the engines need.
        EngineFailed: engines died until no more could be done.
    """
    with _joined_cluster():
        pool = _Pool(request, list(parts), count, say)
        try:
            pool.sample(report, keep)
            pool.close()
        finally:
            pool.kill()


class _Engine:
    """One actor and what it was asked last."""

    def __init__(self, number: int, actor: Any, share: Share):
        self.number, self.actor, self.share = number, actor, share
        self.place: Place | None = None
        self.call = actor.place.remote()
        self.called = time.monotonic()

    def work(self, parts: list[Part]) -> None:
        self.call, self.called = self.actor.work.remote(parts), time.monotonic()

    def overdue(self) -> str | None:
        """Name the limit that the engine has passed; None while it has not."""
        limit = _LOAD_SECONDS if self.place is None else _SILENT_SECONDS
        if self.call is None or time.monotonic() - self.called <= limit:
            return None
        what = "was not placed and loaded" if self.place is None else "has not answered"
        return f"it {what} within {limit / 60:.0f} minutes"

    def failure(self, cause: str) -> str:
        """Describe its death: where it ran, the cause, and where its log is."""
        where = self.place.words if self.place else "loading"
        log = self.place.log if self.place else "in the directory of Ray's logs on its node"
        return f"engine {self.number} ({where}) failed: {without_colour(cause).strip()}\nIts log: {log}"


class _Pool:
    """Hands out shards, and replaces engines that die."""

    def __init__(self, request: Request, parts: list[Part], count: int, say: Callable[[str], None]):
        gpus = 0 if on_cpu(request.device) else request.tensor_parallel_size
        _require_gpus(count, gpus)
        self._request, self._say = request, say
        # Half of an engine's part of the work: the rest is for whoever is done first.
        self._most_open = -(-len(parts) // (2 * count))
        self._waiting, self._left, self._lost = deque(parts), len(parts), Counter[int]()
        # All GPUs of an actor are on one node. vLLM would start Ray workers of its own inside a placement group.
        self._actor = ray.remote(EngineActor).options(
            num_gpus=gpus,
            num_cpus=min(gpus, 1),
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": _environment(count, cpu=gpus == 0)},
        )
        self._engines = [self._start(number) for number in range(count)]

    def sample(self, report: Report, keep: Keep) -> None:
        """Sample until every shard is kept. Raises EngineFailed."""
        while self._left:
            for engine in self._engines:
                if engine.call is None and ((parts := engine.share.take(self._waiting)) or engine.share.open):
                    engine.work(parts)
            asked = {engine.call: engine for engine in self._engines if engine.call is not None}
            answered, _ = ray.wait(list(asked), timeout=_LOOK_SECONDS)
            for call in answered:
                for part, samples in self._answer(asked[call]):
                    self._left -= 1
                    keep(part, samples)
            for engine in list(self._engines):
                if (problem := engine.overdue()) is not None:
                    self._replace(engine, problem)
            if answered:
                report(*map(sum, zip(*(engine.share.sampled for engine in self._engines), strict=True)))

    def close(self) -> None:
        """Let engines end in an orderly way."""
        closing = [engine.actor.close.remote() for engine in self._engines if engine.place is not None]
        ray.wait(closing, num_returns=len(closing), timeout=_END_SECONDS)

    def kill(self) -> None:
        """End every actor."""
        for engine in self._engines:
            with suppress(RayError):
                ray.kill(engine.actor)

    def _start(self, number: int) -> _Engine:
        share = Share(self._most_open, self._request.sequences_at_once)
        return _Engine(number, self._actor.remote(self._request.sampler, self._request.settings), share)

    def _answer(self, engine: _Engine) -> list[tuple[Part, pa.Table]]:
        """Read an engine's answer; returns the shards that are complete."""
        try:
            answer: Place | Work = ray.get(engine.call, timeout=_FETCH_SECONDS)
        except RayError as error:
            self._replace(engine, str(error))
            return []
        engine.call = None
        if isinstance(answer, Work):
            return engine.share.finish(answer)
        engine.place = answer
        self._say(f"engine {engine.number} ready in {time.monotonic() - engine.called:.1f} s ({answer.words})")
        return []

    def _replace(self, engine: _Engine, cause: str) -> None:
        """Give a dead engine's shards back, and start another in its place, if it had been ready.

        Raises:
            EngineFailed: too many engines died over one shard, or none is left.
        """
        failure = engine.failure(cause)
        self._say(failure)
        with suppress(RayError):
            ray.kill(engine.actor)
        place = self._engines.index(engine)
        held = list(engine.share.open.values())
        self._waiting.extendleft(reversed(held))
        self._lost.update(part.number for part in held)
        if any(self._lost[part.number] >= _TRIES for part in held):
            raise EngineFailed(f"{failure}\nIts shards were lost {_TRIES} times, so all engines were stopped.")
        if engine.place is not None:
            self._engines[place] = self._start(engine.number)
            return
        # One that cannot be loaded here would fail again; those that can do its work.
        del self._engines[place]
        if not self._engines:
            raise EngineFailed(f"{failure}\nNo engine is left.")


@contextmanager
def _joined_cluster() -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    # Left to itself Ray joins whatever cluster it finds on this machine.
    address = os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address, logging_level="warning", **own)
    try:
        yield
    finally:
        ray.shutdown()


def _require_gpus(count: int, each: int) -> None:
    if each == 0:
        return
    gpus = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    most = sum(found // each for found in gpus)
    if count > most:
        raise UserError(
            f"{count} engine(s) of {each} GPU(s) each need more GPUs than the {sum(gpus)} on {len(gpus)} node(s) that "
            "the Ray cluster shows.",
            key="replicas",
            value=count,
            remedy=f"At most {most}; in a recipe cluster.nodes and cluster.gpus_per_node decide. Without RAY_ADDRESS "
            "the cluster is this machine.",
        )


def _environment(count: int, *, cpu: bool) -> dict[str, str]:
    """Variables of an engine's process: workers have those of the node that they are on, not those of this process."""
    chosen = {k: v for k, v in os.environ.items() if k.startswith("VLLM_") and not k.endswith(("_KEY", "_TOKEN"))}
    threads = max(1, int(cpu_environment()["OMP_NUM_THREADS"]) // count)
    return {**chosen, **cuda_environment(), **({"OMP_NUM_THREADS": str(threads)} if cpu else {})}
