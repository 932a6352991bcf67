"""Serve runs, one after the other, each in a box of its own.

    python -P -s -S -c "..." SETTINGS  (see box_client.py)  requests on stdin, replies on stdout, one JSON object a line

    {"files": {name: text}, "stdin": text, "limits": {...}, "arguments": {...} or null}
        ->  {"result": the fields of Result}  or  {"failed": reason}

The first reply is {"ready": true}, or {"error": reason} if the function does not load. The server imports its function
once; a box runs it in a fork. It ends with its input, and with it a run that is under way.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from typing import Any

from verl_s2d.sandbox.box import BoxFailed, Job, start
from verl_s2d.sandbox.program import RunLimits
from verl_s2d.sandbox.supervision import OwnerGone, supervise


def main(settings: dict[str, Any]) -> None:
    """Serve until the input ends.

    Args:
        settings: isolated; visible, directories to show in boxes; function, "module:function" or None.
    """
    replies = os.dup(1)
    # Output of libraries must not mix with replies.
    os.dup2(2, 1)
    function = None
    if settings["function"] is not None:
        try:
            module, _, name = settings["function"].partition(":")
            function = getattr(importlib.import_module(module), name)
        except BaseException as error:
            _reply(replies, {"error": f"{type(error).__name__}: {error}"})
            return
    _reply(replies, {"ready": True})
    requests = os.fdopen(0, "rb", closefd=False)
    while line := requests.readline():  # no limit: idle until there is a request or its owner has gone
        asked = json.loads(line)
        job = Job(
            files=asked["files"],
            stdin=asked["stdin"],
            limits=RunLimits(**asked["limits"]),
            isolated=settings["isolated"],
            visible=tuple(settings["visible"]),
            function=function,
            arguments=asked["arguments"],
        )
        try:
            _reply(replies, {"result": dataclasses.asdict(supervise(start(job), job.limits, 0))})
        except BoxFailed as error:
            _reply(replies, {"failed": str(error)})
        except OwnerGone:
            return


def _reply(descriptor: int, reply: dict[str, Any]) -> None:
    with open(os.dup(descriptor), "wb") as file:
        file.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
