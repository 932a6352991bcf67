"""One process that has imported verl answers every test that asks verl about stages or renders prompts, instead of one
process a test."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest

from verl_s2d.checks.verl_probe import VerlProbe
from verl_s2d.platforms.subprocess_query import Probe
from verl_s2d.platforms.temporary_files import new_directory

_SERVER = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # verl prints to standard output
from verl_s2d.sampling.render_process import answers as render
from verl_s2d.checks.verl_process import answers as about_verl
for line in sys.stdin:
    question = json.loads(line)
    if "stages" in question:
        found = {name: part for answer in about_verl(question) for name, part in answer.items()}
    else:
        found = render(question, sys.stderr)
    print(json.dumps(found, default=str), file=answers, flush=True)
"""
RENDER = "verl_s2d.sampling.render_process"
_MATTERS = ("CUDA", "HF_", "PYTHON", "VERL", "VLLM")
"""Prefixes of the variables on which an answer depends."""


class Server:
    """The process, from the first question to `end`."""

    def __init__(self, environment: Mapping[str, str]):
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVER], stdin=pipe, stdout=pipe, env=dict(environment), text=True
        )

    def ask(self, question: Any) -> dict[str, Any]:
        self._process.stdin.write(json.dumps(question, default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that answers for verl has ended; its messages are on standard error"
        return json.loads(answer)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class WatchedLogger(logging.Logger):
    """Writes every message to `text`, whatever the libraries that this process imports have done to its logs."""

    def __init__(self) -> None:
        super().__init__("watched")
        self.text = io.StringIO()
        self.addHandler(logging.StreamHandler(self.text))

    def isEnabledFor(self, level: int) -> bool:
        return True


@pytest.fixture
def watch_log(monkeypatch) -> Callable[[ModuleType, str], io.StringIO]:
    """Return a function that puts a WatchedLogger in the place of a module's logger, and returns the text it writes."""

    def watch(module: ModuleType, name: str) -> io.StringIO:
        logger = WatchedLogger()
        monkeypatch.setattr(module, name, logger)
        return logger.text

    return watch


@pytest.fixture(scope="session")
def composition_servers() -> Iterator[dict[tuple, Server]]:
    servers: dict[tuple, Server] = {}
    yield servers
    for server in servers.values():
        server.end()


@pytest.fixture
def own_composition_process() -> None:
    """Asked for by tests of the process itself."""


@pytest.fixture(autouse=True)
def _shared_composition(request, monkeypatch, composition_servers):
    if "own_composition_process" in request.fixturenames:
        return
    start = Probe.__init__

    def init(probe, arguments, environment, question=None, **rest):
        if not isinstance(probe, VerlProbe) and arguments[-1] != RENDER:
            start(probe, arguments, environment, question, **rest)
            return
        key = tuple(sorted(item for item in environment.items() if item[0].startswith(_MATTERS)))
        if arguments[-1] == RENDER:
            key = next(iter(composition_servers), key)
        if key not in composition_servers:
            composition_servers[key] = Server(environment)
        probe._answer = (composition_servers[key].ask(question), "")
        probe._process, probe._temporary = Ended(), new_directory()

    monkeypatch.setattr(Probe, "__init__", init)


class Ended:
    """The process of a probe that has its answer."""

    def poll(self) -> int:
        return 0
