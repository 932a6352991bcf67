"""Several engines on this machine, each in a process of its own with its own GPUs. Parts are handed out as engines ask
for them, so that a slow one holds nobody up; when one fails, all are stopped."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.logs import last_lines
from verl_s2d.platforms.environment import cpu_environment
from verl_s2d.sampling.engine import on_cpu
from verl_s2d.sampling.replica import Report
from verl_s2d.sampling.request import Request
from verl_s2d.sampling.shards import Part

COMMAND = [sys.executable, "-m", "verl_s2d.sampling.replica"]
_LOOK_SECONDS = 0.5
_SILENT_SECONDS = 1800.0
"""An engine reports every few seconds while it works, and while it loads a model its log grows. The watchdog of a stage
sees only that all are silent."""
_END_SECONDS = 30
_SHOWN_LINES = 10


class ReplicaFailed(Exception):
    """An engine's process ended before its work, or fell silent; with the end of its log."""


def sample_with_replicas(
    request: Request,
    parts: Iterable[Part],
    count: int,
    logs: Path,
    say: Callable[[str], None],
    report: Report,
    wrote: Callable[[int], None] = lambda number: None,
) -> None:
    """Have `count` engines sample and write the parts.

    Args:
        logs: directory of their logs.
        say: hears of an engine that is ready.
        report: hears of prompts and tokens that all have finished, together.
        wrote: hears the number of every part that is in place.

    Raises:
        UserError: fewer GPUs than they need.
        ReplicaFailed: one of them failed; the others have been stopped.
    """
    parts = list(parts)
    start = {
        "sampler": request.sampler,
        "settings": asdict(request.settings),
        "most_open": most_open(len(parts), count),
        "at_once": request.sequences_at_once,
    }
    logs.mkdir(parents=True, exist_ok=True)
    coordinator = _Coordinator(parts, say, report, wrote)
    try:
        for number, environment in enumerate(_environments(count, request.tensor_parallel_size, request.device)):
            coordinator.start(number, environment, logs / f"engine-{number}.txt", start)
        coordinator.work()
    finally:
        coordinator.stop()


def most_open(parts: int, count: int) -> int:
    """Parts that one engine works on at a time, at most: half of its share, the rest is for whoever is done."""
    return -(-parts // (2 * count))


class _Replica:
    """One process."""

    def __init__(self, number: int, environment: Mapping[str, str], log: Path, inbox: queue.Queue):
        self.number, self.log = number, log
        self.gpus = environment.get("CUDA_VISIBLE_DEVICES") or None
        self.open: set[int] = set()
        self.dismissed = False
        self.finished = (0, 0)
        self.heard = time.monotonic()
        with log.open("a") as stream:
            stream.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            stream.flush()
            self.process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **environment},
                text=True,
                # Of its own, so that it can be ended with vLLM's processes.
                process_group=0,
            )
        self.listening = threading.Thread(target=self._listen, args=(inbox,), daemon=True)
        self.listening.start()

    def _listen(self, inbox: queue.Queue) -> None:
        for line in self.process.stdout:
            inbox.put((self, json.loads(line)))

    def tell(self, **message: Any) -> None:
        # Gone: whoever looks at the process next finds out.
        with suppress(BrokenPipeError):
            print(json.dumps(message), file=self.process.stdin, flush=True)

    def problem(self, drained: bool) -> str | None:
        """What is wrong with it. `drained`: nothing that it has said is left unread."""
        code = self.process.poll()
        if code is not None:
            if code < 0:
                return f"was killed by signal {-code}"
            done = self.dismissed and not self.open
            if code > 0 or (drained and not self.listening.is_alive() and not done):
                return f"ended with exit code {code}"
        elif (self.open or not self.dismissed) and self._silent() > _SILENT_SECONDS:
            return f"has said nothing for {_SILENT_SECONDS / 60:.0f} minutes"
        return None

    def _silent(self) -> float:
        """Seconds since its last message, or since its log grew."""
        return min(time.monotonic() - self.heard, time.time() - self.log.stat().st_mtime)

    def end(self) -> None:
        """With its process group."""
        if self.dismissed and not self.open:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)


class _Coordinator:
    """Hands out parts, and notices what goes wrong."""

    def __init__(self, parts: list[Part], say: Callable[[str], None], report: Report, wrote: Callable[[int], None]):
        self._waiting, self._left = deque(parts), len(parts)
        self._say, self._report, self._wrote = say, report, wrote
        self._inbox: queue.Queue[tuple[_Replica, dict[str, Any]]] = queue.Queue()
        self._replicas: list[_Replica] = []

    def start(self, number: int, environment: Mapping[str, str], log: Path, message: Mapping[str, Any]) -> None:
        replica = _Replica(number, environment, log, self._inbox)
        self._replicas.append(replica)
        replica.tell(**message)

    def work(self) -> None:
        """Until every part is written."""
        while self._left:
            with suppress(queue.Empty):
                self._hear(*self._inbox.get(timeout=_LOOK_SECONDS))
            for replica in self._replicas:
                problem = replica.problem(drained=self._inbox.empty())
                if problem is not None:
                    raise ReplicaFailed(_message(replica, problem))

    def stop(self) -> None:
        """End all of them, those first that have nothing to clean up."""
        for replica in sorted(self._replicas, key=lambda r: r.dismissed and not r.open):
            replica.end()

    def _hear(self, replica: _Replica, message: Mapping[str, Any]) -> None:
        replica.heard = time.monotonic()
        if "take" in message:
            part = self._waiting.popleft() if self._waiting else None
            if part is None:
                replica.dismissed = True
            else:
                replica.open.add(part.number)
            replica.tell(part=part)
        elif "wrote" in message:
            replica.open.remove(message["wrote"])
            self._left -= 1
            self._wrote(message["wrote"])
        elif "progress" in message:
            replica.finished = tuple(message["progress"])
            self._report(*map(sum, zip(*(r.finished for r in self._replicas), strict=True)))
        elif "ready" in message:
            self._say(f"engine {replica.number} ready in {message['ready']:.1f} s")


def _message(replica: _Replica, problem: str) -> str:
    gpus = f", GPUs {replica.gpus}" if replica.gpus else ""
    who = f"engine {replica.number} (process {replica.process.pid}{gpus})"
    lines = last_lines(replica.log, _SHOWN_LINES)
    return "\n".join([f"{who} {problem}, so all engines were stopped. The end of {replica.log}:", *lines])


def _environments(count: int, gpus_each: int, device: str = "auto") -> list[dict[str, str]]:
    """What is different in the environment of each engine: its GPUs, or its share of the cores."""
    if on_cpu(device):
        threads = int(cpu_environment()["OMP_NUM_THREADS"])
        return [{"OMP_NUM_THREADS": str(max(1, threads // count))}] * count
    gpus = _visible_gpus()
    if count * gpus_each > len(gpus):
        raise UserError(
            f"{count} engines of {gpus_each} GPUs each need more GPUs than the {len(gpus)} that this machine shows.",
            key="replicas",
            value=count,
            remedy=f"At most {len(gpus) // gpus_each}; in a recipe cluster.gpus_per_node decides.",
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * gpus_each : (i + 1) * gpus_each])} for i in range(count)]


def _visible_gpus() -> list[str]:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.accelerator.device_count())]
