"""The reward function that stages 1 and 3 give to verl: a verifier whose every call is written down.

    reward.custom_reward_function.path=pkg://verl_s2d.verifiers.ledgered  name=compute_score
    +reward.custom_reward_function.reward_kwargs.verifier=math  (or /path/file.py:function, or {name:math,form:boxed})
    +reward.custom_reward_function.reward_kwargs.ledger_dir=DIR

verl calls it in threads of several processes at once. Each process appends to a file of its own, one write a line, so
that lines never mix and a kill loses at most the line being written.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from verl_s2d.errors import UserError
from verl_s2d.verifiers.registry import Score, resolve


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    verifier: str | Mapping[str, Any],
    ledger_dir: str,
    **kwargs: Any,
) -> Score:
    """The verifier's score, after the call has been entered in <ledger_dir>/<host>-<pid>.jsonl as {"id": problem id}.

    Entered before the verifier runs: the answer has then been handed over, whatever becomes of the call.

    Raises:
        UserError: unknown verifier, or a problem without an id.
    """
    score = resolve(verifier)
    problem = (extra_info or {}).get("index")
    if problem is None:
        raise UserError(
            "The problem has no id, so that its label cannot be accounted for.",
            key="extra_info.index",
            remedy="Give every problem an id in extra_info.index.",
        )
    line = json.dumps({"id": str(problem)}) + "\n"
    os.write(_descriptor(ledger_dir, os.getpid()), line.encode())
    result = score(
        data_source=data_source, solution_str=solution_str, ground_truth=ground_truth, extra_info=extra_info, **kwargs
    )
    return result if isinstance(result, dict) else float(result)


@cache
def _descriptor(directory: str, pid: int) -> int:
    """Open for the life of the process; the pid in the key keeps a forked child from writing into its parent's file."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"{socket.gethostname()}-{pid}.jsonl"
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
