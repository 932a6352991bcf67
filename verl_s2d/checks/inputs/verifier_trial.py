"""Try the verifier on every data set: ground truths and solutions of the data itself have to score."""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_s2d.checks.finding import Told
from verl_s2d.errors import Faults, UserError
from verl_s2d.platforms.subprocess_query import Probe
from verl_s2d.verifiers.registry import asks_judge, by_data_source
from verl_s2d.verifiers.trial import NO_ANSWER, Trial, try_verifier
from verl_s2d.workflow.identity import files_external
from verl_s2d.workflow.plan import Plan

if TYPE_CHECKING:
    from verl_s2d.data.problems import Problem

PROBLEMS = 24
"""Problems of each file to try, and one more of each further data source."""
_NEARLY_NONE = 0.05
"""Share of right scores up to which a verifier is taken not to read a form at all."""
_MANY = 4
"""Solutions below this number prove nothing."""
_known: dict[str, dict[str, Trial]] = {}
"""Trials in this process by verifier and problems, because a plan is checked more than once."""


def try_on_data(plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]]) -> Told:
    """Score ground truths and solutions of every file; return a line per file, for people to look at.

    With verifiers by data source there is a line for each data source of a file.

    Args:
        files: file -> (its name in messages, its problems).

    Raises:
        UserError: the verifier raises or returns no score, a built-in one gives no ground truth a score, or any gives
            none of the data's own solutions a score although the prompts ask for no other form.
    """
    faults, lines, warnings = Faults(), [], []
    for verifier, sets in _sets(plan, files):
        trials = _trials(plan, verifier, {key: _sample(problems) for key, problems in sets.items()})
        for key, trial in trials.items():
            with faults.collected():
                _require_truths(verifier, key, trial)
                _require_solutions(verifier, key, trial, sets[key])
            lines.append(f"{key}: {trial.text()}")
            if trial.form is None:
                warnings.append(f"{key}: the verifier gives {_without_form(trial)}")
    faults.raise_found()
    asking = not lines and bool(files)
    told = "not tried on data: every answer of its judge costs something" if asking else "tried when the data is there"
    return Told("\n".join(lines) or told, warnings)


def _sets(
    plan: Plan, files: Mapping[Path, tuple[str, list[Problem]]]
) -> list[tuple[str | Mapping[str, Any], dict[str, list[Problem]]]]:
    """List each verifier with the problems that it scores, by their name in messages.

    Verifiers that ask a judge are left out: every answer costs something, and they have their own check.
    """
    by_source = by_data_source(plan.recipe.verifier)
    if by_source is None:
        return [] if asks_judge(plan.recipe.verifier) else [(plan.recipe.verifier, dict(files.values()))]
    sets = []
    for source, verifier in by_source.items():
        if asks_judge(verifier):
            continue
        own = {
            f"{key} ({source})": found
            for key, problems in files.values()
            if (found := [problem for problem in problems if problem.data_source == source])
        }
        sets.append((verifier, own))
    return sets


def _sample(problems: Sequence[Problem]) -> list[Problem]:
    """Choose problems from all over a file, with one of every data source."""
    chosen = {round(i * (len(problems) - 1) / PROBLEMS) for i in range(PROBLEMS + 1)}
    sources: dict[str, int] = {}
    for number, problem in enumerate(problems):
        sources.setdefault(problem.data_source, number)
    return [problems[number] for number in sorted(chosen | set(sources.values()))]


def _trials(
    plan: Plan, verifier: str | Mapping[str, Any], samples: Mapping[str, Sequence[Problem]]
) -> dict[str, Trial]:
    chosen, identity = verifier, ""
    if _is_own(chosen):
        file, _, function = chosen.rpartition(":")
        path = plan.recipe.directory / file
        identity, chosen = files_external([path], "verifier", verifier).identity, f"{path}:{function}"
    rows = {
        key: [
            {"data_source": p.data_source, "ground_truth": p.ground_truth, "extra_info": p.extra_info} for p in sample
        ]
        for key, sample in samples.items()
    }
    known = hashlib.sha256(pickle.dumps((str(chosen), identity, rows))).hexdigest()
    if known not in _known:
        # A recipe's own file may import anything and may hang, and verl takes seconds to import.
        apart = identity or chosen == "verl"
        _known[known] = (
            _in_process(chosen, rows, verifier)
            if apart
            else {key: try_verifier(chosen, rows[key], key) for key in rows}
        )
    return _known[known]


def _in_process(verifier: str, rows: Mapping[str, list[dict[str, Any]]], shown: str) -> dict[str, Trial]:
    """Run the trials in a process of their own; `shown` names the verifier in messages.

    Rows travel as parquet: dates, bytes and decimals keep their types.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as directory:
        files = {key: str(Path(directory) / f"{number}.parquet") for number, key in enumerate(rows)}
        for key, file in files.items():
            pq.write_table(pa.Table.from_pylist(rows[key]), file)
        question = {"verifier": verifier, "files": files}
        with Probe(["-m", "verl_s2d.verifiers.trial"], None, question, what="a trial of the verifier") as probe:
            answer, failure = probe.answer()
    if answer is None:
        answer = {"problem": failure, "key": "verifier", "remedy": "Run the verifier by hand to see where it fails."}
    if answer["problem"] is not None:
        raise UserError(answer["problem"], key=answer["key"], value=shown, remedy=answer["remedy"])
    return {key: Trial(**trial) for key, trial in answer["trials"].items()}


def _is_own(verifier: str | Mapping[str, Any]) -> bool:
    """Tell whether the verifier is a function of the recipe's own."""
    return isinstance(verifier, str) and ":" in verifier


def _without_form(trial: Trial) -> str:
    """Describe what a verifier does with ground truths that it scores in no common form."""
    if trial.no_answer > 0:
        return f"the response {NO_ANSWER!r} as high a score ({trial.no_answer:g}) as any ground truth"
    return "no ground truth a score, in any common form"


def _require_truths(chosen: str | Mapping[str, Any], key: str, trial: Trial) -> None:
    """Refuse truths that a built-in verifier never gives a score; one of a recipe's own may read any form."""
    if _is_own(chosen) or not trial.truths or trial.right > _NEARLY_NONE * trial.truths:
        return
    raise UserError(
        f"The verifier gives {trial.right} of {trial.truths} ground truths, as responses, a score ({trial.text()}).",
        key=f"{key}: reward_model.ground_truth",
        value=trial.truth[:200],
        remedy="Give the final answer alone as the ground truth, or choose a verifier that reads these (math, verl, or "
        "file.py:function).",
    )


def _require_solutions(chosen: str | Mapping[str, Any], key: str, trial: Trial, problems: Sequence[Problem]) -> None:
    """Refuse solutions without a score, unless the prompts ask for the form that the verifier does read."""
    if trial.solutions < _MANY or trial.solved > _NEARLY_NONE * trial.solutions:
        return
    if trial.form is None and _is_own(chosen):
        # It may read a form of its own, or score what is no answer: a warning says so.
        return
    if trial.form and any(trial.form in problem.text for problem in problems):
        return
    form = f"ask for {trial.form} in the prompts" if trial.form else "correct the ground truths"
    raise UserError(
        f"Responses as the data asks for them would have no reward: {trial.text()}.",
        key=f"{key}: extra_info",
        value=str(chosen),
        remedy=f"Choose a verifier that reads these solutions (math, verl, or file.py:function), or {form}.",
    )
