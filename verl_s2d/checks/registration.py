"""Judge whether verl has our trainers and our estimator in its registries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def judge(answer: Mapping[str, Any]) -> tuple[bool, str]:
    """Return (whether everything is registered, the registered names or the failure).

    Args:
        answer: of verl_process.py.
    """
    if answer["error"]:
        return False, f"the plugin failed inside verl:\n{answer['error']}"
    if answer["missing"]:
        return False, f"verl does not know: {', '.join(answer['missing'])}"
    shims = [f"{name} ({state})" for name, state in answer["shims"].items()]
    return True, "\n".join([", ".join(answer["done"]), *shims])
