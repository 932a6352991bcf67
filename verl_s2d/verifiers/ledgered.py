"""Run a verifier as verl's reward function in stages 1 and 3, and record every call in the ledger.

    reward.custom_reward_function.path=pkg://verl_s2d.verifiers.ledgered  name=compute_score
    +reward.custom_reward_function.reward_kwargs.verifier=math  (or another, see registry.resolve)
    +reward.custom_reward_function.reward_kwargs.ledger_dir=DIR

verl calls it from threads of several processes at once. Each process appends to its own file, with one write per line,
so that lines never interleave and a kill loses at most the last line.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from verl_s2d.errors import Unscored, UserError
from verl_s2d.verifiers.judge_costs import collect_judged
from verl_s2d.verifiers.registry import Scored, resolve
from verl_s2d.verifiers.score import retried
from verl_s2d.verifiers.unsettled import collect_unsettled

_UNSETTLED = b'{"unsettled": '
"""Beginning of the line of a call without a verdict."""
_UNSCORED = b'{"unscored": '
"""Beginning of the line of a call whose verifier could not judge."""
_JUDGED = b'{"judged": '
"""Beginning of the line of a call that asked a judge."""
_LABEL = b'{"label": '
"""Beginning of the line of a label that was read without a call."""
_PROMPT = b'{"prompt": '
"""Beginning of the line of a prompt without a label."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    verifier: str | Mapping[str, Any],
    ledger_dir: str,
    **kwargs: Any,
) -> Scored:
    """Score a response after recording the call in <ledger_dir>/<host>-<pid>.jsonl as {"id": problem id}.

    The call is recorded first, because the label counts as read even if the verifier then fails. A call that ends
    without a verdict is recorded again as {"unsettled": reason, "problem": problem id}. A verifier that could not judge
    is called again after pauses; if it still cannot, {"unscored": reason, "problem": problem id} is recorded. What a
    judge was asked is {"judged": calls, "tokens": of questions and answers}.

    Raises:
        Unscored: the verifier could not judge. verl then has no score, and so no rollout.
        UserError: the verifier is unknown, the problem has no id, or the result is no finite number.
    """
    score = resolve(verifier)
    problem = (extra_info or {}).get("index")
    if problem is None:
        raise UserError(
            "The problem has no id, so its label cannot be entered in the ledger.",
            key="extra_info.index",
            remedy="Give every problem an id in extra_info.index.",
        )
    _write(ledger_dir, {"id": str(problem)})
    problem_and_response = {
        "data_source": data_source,
        "solution_str": solution_str,
        "ground_truth": ground_truth,
        "extra_info": extra_info,
    }
    with collect_unsettled() as unsettled, collect_judged() as judged:
        try:
            result = retried(lambda: score(**problem_and_response, **kwargs))
        except Unscored as error:
            _write(ledger_dir, {"unscored": str(error), "problem": str(problem)})
            raise
        finally:
            if judged:
                _write(ledger_dir, {"judged": len(judged), "tokens": sum(judged)})
    if unsettled:
        _write(ledger_dir, {"unsettled": unsettled[0], "problem": str(problem)})
    return result if isinstance(result, dict) else float(result)


def record_label(ledger_dir: str, problem: str) -> None:
    """Record as {"label": problem id} that a label was read for another purpose than to score a response."""
    _write(ledger_dir, {"label": problem})


def record_prompt(ledger_dir: str, problem: str) -> None:
    """Record as {"prompt": problem id} that a prompt without a label was read."""
    _write(ledger_dir, {"prompt": problem})


def _write(ledger_dir: str, entry: Mapping[str, str | int]) -> None:
    os.write(_descriptor(ledger_dir, os.getpid()), json.dumps(entry).encode() + b"\n")


@cache
def _descriptor(directory: str, pid: int) -> int:
    """Open a ledger file for the life of the process; the pid keeps a forked child out of its parent's file."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"{socket.gethostname()}-{pid}.jsonl"
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def verifier_calls(directory: Path) -> dict[str, Any]:
    """Count what <stage>/verifier/*.jsonl records: the keys of a ledger for labels, prompts and verifier calls.

    A call writes the line {"id": ...}, and another one, {"unsettled": reason} or {"unscored": reason}, if it ended
    without a verdict or could not be made; a label read without a call writes {"label": id}, a prompt without a label
    {"prompt": id}. A line cut short by a kill counts as a call without an id; the repeated step reads the same label
    again.
    """
    labels, prompts, calls, unsettled, unscored, judged = set(), set(), 0, 0, 0, Counter()
    for path in sorted((directory / "verifier").glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            if not line.strip():
                continue
            if line.startswith(_UNSETTLED):
                unsettled += 1
                continue
            if line.startswith(_UNSCORED):
                unscored += 1
                continue
            if line.startswith(_JUDGED):
                judged += _numbers(line)
                continue
            name = "label" if line.startswith(_LABEL) else "prompt" if line.startswith(_PROMPT) else "id"
            calls += name == "id"
            try:
                (prompts if name == "prompt" else labels).add(str(json.loads(line)[name]))
            except (ValueError, KeyError, TypeError):
                continue
    read = {"labels_read": sorted(labels), "prompts_read": sorted(prompts)}
    counted = {"verifier_calls": calls, "unsettled_calls": unsettled, "unscored_calls": unscored}
    return {**read, **counted, "judge_calls": judged["judged"], "judge_tokens": judged["tokens"]}


def _numbers(line: bytes) -> Counter[str]:
    """Read a line of numbers; one that a kill cut short has none."""
    try:
        return Counter(json.loads(line))
    except ValueError:
        return Counter()
