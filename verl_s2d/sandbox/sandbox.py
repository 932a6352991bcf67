"""Run untrusted programs, or one function of untrusted input, in boxes: several at once, each with its own limits."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import queue
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from verl_s2d.errors import Unscored, UserError
from verl_s2d.sandbox.box_client import BoxClient, FunctionMissing, ServerGone
from verl_s2d.sandbox.program import DEFAULT_LIMITS, MAIN, Program, Result, RunLimits

SLOTS = 2
"""Runs at once in one process. verl runs several reward workers, each of which has its own sandbox."""
ATTEMPTS = 3
"""Attempts at a run that its server or the machine ended; 0.1 s and 0.2 s lie between them."""
_PAUSE_SECONDS = 0.1


class Sandbox:
    """A thread-safe pool of servers that run programs in boxes. Servers start on first use.

    Args:
        function: "module:function" that boxes call with arguments, in place of running programs. Its module is
            imported once a server, so that calls are fast.
        slots: runs at once.
        allow_unsandboxed: run without isolation, within limits alone.
        visible: directories that boxes show read-only, besides Python's own and the system's libraries.
    """

    def __init__(
        self,
        function: str | None = None,
        *,
        slots: int = SLOTS,
        allow_unsandboxed: bool = False,
        visible: Sequence[str] = (),
    ) -> None:
        settings = {"function": function, "isolated": not allow_unsandboxed, "visible": list(visible)}
        self._all = [BoxClient(settings) for _ in range(slots)]
        # Last in, first out: a single caller starts one server only.
        self._free: queue.LifoQueue[BoxClient] = queue.LifoQueue()
        for client in reversed(self._all):
            self._free.put(client)
        _open.add(self)

    def run(self, program: Program, limits: RunLimits = DEFAULT_LIMITS) -> Result:
        """Run a program.

        Raises:
            Unscored: no box could be made, or each attempt was ended from outside.
        """
        files = {**program.files, MAIN: program.source}
        return self._run({"files": files, "stdin": program.stdin, "arguments": None}, limits)

    def call(self, limits: RunLimits = DEFAULT_LIMITS, **arguments: Any) -> Any:
        """Call the sandbox's function with arguments that JSON can hold, and return its result.

        Raises:
            CallFailed: it raised an exception or exceeded a limit.
            Unscored: no box could be made, or each attempt was ended from outside.
            UserError: the function does not load.
        """
        result = self._run({"files": {}, "stdin": "", "arguments": arguments}, limits)
        if not result.succeeded:
            raise CallFailed(result.reason())
        try:
            return json.loads(result.stdout)
        except ValueError as error:
            raise CallFailed("its result is not JSON") from error

    def check(self) -> None:
        """Run a trivial program.

        Raises:
            UserError: this machine cannot make a box.
        """
        client = self._free.get()  # no limit: every run before this one ends within its own limits
        try:
            if client.pid is None:
                client.run(_request({"files": {MAIN: ""}, "stdin": "", "arguments": None}, DEFAULT_LIMITS), 1.0)
        except FunctionMissing as error:
            raise _function_missing(error) from error
        except ServerGone as error:
            raise UserError(
                f"Programs cannot be isolated on this machine: {error}.",
                key="verifier.allow_unsandboxed",
                value=False,
                remedy="Allow user namespaces (docs/verifiers.md), give the url of a SandboxFusion service, or run "
                "untrusted programs with limits alone: allow_unsandboxed: true.",
            ) from error
        finally:
            self._free.put(client)

    def pids(self) -> list[int]:
        """List the pids of running servers."""
        return [client.pid for client in self._all if client.pid is not None]

    def close(self) -> None:
        """End all servers. The next run restarts them."""
        for client in self._all:
            client.close()

    def forget(self) -> None:
        """Leave the servers to the process that this one was forked from."""
        for client in self._all:
            client.forget()

    def _run(self, request: Mapping[str, Any], limits: RunLimits) -> Result:
        client = self._free.get()  # no limit: every run before this one ends within its own limits
        problem = ""
        try:
            for attempt in range(ATTEMPTS):
                time.sleep(_PAUSE_SECONDS * attempt)
                try:
                    return client.run(_request(request, limits), limits.seconds)
                except ServerGone as error:
                    problem = str(error)
        except FunctionMissing as error:
            raise _function_missing(error) from error
        finally:
            self._free.put(client)
        raise Unscored(f"the sandbox failed {ATTEMPTS} times: {problem}")


def _function_missing(error: FunctionMissing) -> UserError:
    return UserError(f"The function to run in the sandbox does not load: {error}", key="verifier", remedy="Install it.")


class CallFailed(Exception):
    """A function in the sandbox raised an exception or exceeded a limit, by its input's fault."""


@functools.cache
def shared(slots: int = SLOTS, allow_unsandboxed: bool = False) -> Sandbox:
    """Return this process's sandbox for programs."""
    return Sandbox(slots=slots, allow_unsandboxed=allow_unsandboxed)


def _request(request: Mapping[str, Any], limits: RunLimits) -> dict[str, Any]:
    return {**request, "limits": dataclasses.asdict(limits)}


_open: weakref.WeakSet[Sandbox] = weakref.WeakSet()


def _close_all() -> None:
    for sandbox in list(_open):
        sandbox.close()


def _after_fork() -> None:
    for sandbox in list(_open):
        sandbox.forget()
    shared.cache_clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
