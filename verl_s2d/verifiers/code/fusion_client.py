"""Run programs on a SandboxFusion service: its `/run_code`, https://github.com/bytedance/SandboxFusion.

An answer that says nothing of the program (an error of the service, 429, 5xx, silence, half an answer) is asked for
again; if none comes, the response is unscored. verl scores it 0.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from verl_s2d.errors import Unscored
from verl_s2d.sandbox.program import Program, Result, RunLimits

ATTEMPTS = 4
PAUSE_SECONDS = 0.5
"""Before the second attempt; twice that before the third."""
GRACE_SECONDS = 10.0
"""Time that the service may take besides compiling and running."""
_REPEATED = frozenset({408, 425, 429})
_MOST_BYTES = 64 << 20


class _NoAnswer(Exception):
    pass


def run_remote(url: str, program: Program, limits: RunLimits, language: str = "python") -> Result:
    """Run a program. Raises Unscored."""
    body = {
        "code": program.source,
        "stdin": program.stdin,
        "language": language,
        "compile_timeout": limits.seconds,
        "run_timeout": limits.seconds,
        "memory_limit_MB": limits.memory_mb,
        "files": {},
        "fetch_files": [],
    }
    problem = ""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1) if attempt else 0)
        try:
            return _result(_ask(url, body, 2 * limits.seconds + GRACE_SECONDS))
        except _NoAnswer as error:
            problem = str(error)
    raise Unscored(f"{url} did not run a program in {ATTEMPTS} attempts: {problem}")


def _ask(url: str, body: dict[str, Any], seconds: float) -> Any:
    """Return the service's answer. Raises _NoAnswer if asking again may help, else Unscored."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as reply:
            return json.loads(reply.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        if error.code in _REPEATED or error.code >= 500:
            raise _NoAnswer(f"status {error.code}") from error
        raise Unscored(f"{url} refuses a program: status {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _NoAnswer(f"{type(error).__name__}: {error}") from error


def _result(answer: Any) -> Result:
    """Read an answer. Raises _NoAnswer if it says nothing of the program."""
    try:
        if answer["status"] not in ("Success", "Failed"):
            raise _NoAnswer(f"{answer['status']}: {str(answer.get('message'))[:200]}")
        for part in (answer.get("compile_result"), answer.get("run_result")):
            if part is None:
                continue
            output = {"stdout": part.get("stdout") or "", "stderr": part.get("stderr") or ""}
            seconds = float(part.get("execution_time") or 0)
            if part["status"] == "TimeLimitExceeded":
                return Result("time", None, seconds=seconds, **output)
            if part["status"] != "Finished":
                raise _NoAnswer(f"{part['status']}: {output['stderr'][:200]}")
            last = Result("ended", int(part["return_code"]), seconds=seconds, **output)
            if last.status != 0:
                return last
        if answer.get("run_result") is None:
            raise _NoAnswer("an answer without a run")
        return last
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _NoAnswer(f"half an answer: {type(error).__name__}: {error}") from error
