"""Check that verl has our trainers and our estimator in its registries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.workflow.subprocess_query import Probe

_PROBE = """
import dataclasses, json
import verl
answer = {"error": None, "missing": [], "done": [], "shims": {}}
try:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
    from verl.trainer.ppo.v1 import get_trainer_cls
    if "s2d_opd" not in ADV_ESTIMATOR_REGISTRY:
        answer["missing"].append("advantage estimator s2d_opd")
    for name in ("s2d_opd", "s2d_grpo"):
        try:
            get_trainer_cls(name)
        except Exception as error:
            answer["missing"].append(f"trainer {name} ({error})")
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


class RegistrationProbe(Probe):
    """Queries verl's registries in a subprocess, which the constructor starts; `result` waits for it."""

    def __init__(self, environment: Mapping[str, str]):
        super().__init__(["-c", _PROBE], environment)

    def result(self) -> tuple[bool, str]:
        """Return (whether everything is registered, the registered names or the failure).

        verl does not report a plugin that fails, so the plugin stores its exception and this shows it.
        """
        answer, failure = self.answer()
        return (False, failure) if answer is None else judge(answer)


def judge(answer: Mapping[str, Any]) -> tuple[bool, str]:
    """Interpret the subprocess's answer."""
    if answer["error"]:
        return False, f"the plugin failed inside verl:\n{answer['error']}"
    if answer["missing"]:
        return False, f"verl does not know: {', '.join(answer['missing'])}"
    shims = [f"{name} ({state})" for name, state in answer["shims"].items()]
    return True, "\n".join([", ".join(answer["done"]), *shims])
