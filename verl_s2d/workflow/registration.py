"""Does verl know our trainer and estimator? Asked of a process of its own, because importing verl takes ten seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_LIMIT_SECONDS = 180
_PROBE = """
import dataclasses, json
import verl
answer = {"error": None, "missing": [], "done": [], "shims": {}}
try:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
    from verl.trainer.ppo.v1 import get_trainer_cls
    if "s2d_opd" not in ADV_ESTIMATOR_REGISTRY:
        answer["missing"].append("advantage estimator s2d_opd")
    try:
        get_trainer_cls("s2d_opd")
    except Exception as error:
        answer["missing"].append(f"trainer s2d_opd ({error})")
except Exception:
    import traceback
    answer["error"] = traceback.format_exc()
try:
    from verl_s2d.plugin import STATUS
    status = dataclasses.asdict(STATUS)
    answer.update({k: v for k, v in status.items() if k in answer and (k != "error" or v)})
except Exception:
    import traceback
    answer["error"] = traceback.format_exc()
print("\\nS2D " + json.dumps(answer, default=str))
"""


class RegistrationProbe:
    """Starts the question when made; `result` waits for the answer. Use it as a context manager: leaving it ends the
    process if it still runs."""

    def __init__(self, environment: Mapping[str, str]):
        # -P: a directory called verl in the working directory must not be taken for the package.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            text=True,
            start_new_session=True,
        )
        self._result: tuple[bool, str] | None = None

    def result(self) -> tuple[bool, str]:
        """(whether all is registered, what is, or what went wrong). verl keeps silent about a plugin that fails, so
        the exception that the plugin stored is told."""
        if self._result is None:
            self._result = self._wait()
        return self._result

    def _wait(self) -> tuple[bool, str]:
        try:
            out, err = self._process.communicate(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return False, f"import verl did not end within {_LIMIT_SECONDS} s"
        line = next((x for x in reversed(out.splitlines()) if x.startswith("S2D ")), None)
        if line is None:
            return False, f"import verl failed:\n{err[-2000:]}"
        return judge(json.loads(line[4:]))

    def __enter__(self) -> RegistrationProbe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def judge(answer: Mapping[str, Any]) -> tuple[bool, str]:
    """What the probing process's answer means."""
    if answer["error"]:
        return False, f"the plugin failed inside verl:\n{answer['error']}"
    if answer["missing"]:
        return False, f"verl does not know: {', '.join(answer['missing'])}"
    shims = [f"{name} ({state})" for name, state in answer["shims"].items()]
    return True, "\n".join([", ".join(answer["done"]), *shims])
