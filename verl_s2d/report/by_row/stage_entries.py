"""Describe a finished stage for the report: what it trained, who was asked, and what it spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from verl_s2d.stages import stages
from verl_s2d.stages.prepare.stage import SOURCES
from verl_s2d.stages.shared.sampling_stage import SamplingStage
from verl_s2d.stages.shared.signal_settings import SERVES
from verl_s2d.teachers.router import TEACHER
from verl_s2d.workflow.ledger import add_ledgers

Manifest = Mapping[str, Any]
Read = Callable[[str, str], Manifest]
"""Return the manifest of a stage, given its kind and digest."""

_CACHE = "rollouts"


def part_in_flow(manifest: Manifest, read: Read) -> dict[str, Any]:
    """Describe a stage's part in the flow of a row.

    Returns:
        symbol (empty for a stage that trains nothing), model and teachers (role -> model), each by the digest of its
        stage or by its location; spent: labels, verifier_calls, sampled_tokens, teacher_scored_tokens of the stage and
        of the rollouts that were sampled for it.
    """
    feeding = [read(**source) for source in manifest["inputs"].values() if _samples(source["kind"])]
    ledger = add_ledgers(one["ledger"] for one in (manifest, *feeding))
    return {
        "symbol": _symbol(manifest, read),
        "model": _source(manifest, "model"),
        "teachers": dict(_teachers(manifest, read)),
        "spent": {
            "labels": len(ledger["labels_read"]),
            **{item: ledger[item] for item in ("verifier_calls", "sampled_tokens", "teacher_scored_tokens")},
        },
    }


def _samples(kind: str) -> bool:
    return isinstance(stages().get(kind), SamplingStage)


def _symbol(manifest: Manifest, read: Read) -> str:
    """Return the stage's symbol, with its slice where it reads answers: RL(1h), RL(all@math)."""
    stage = stages().get(manifest["kind"])
    symbol, part = stage.symbol if stage else "", manifest["settings"].get("slice")
    if not symbol or part is None or "labels" not in stage.consumes:
        return symbol
    slices = manifest["inputs"].get("slices")
    sources = read(**slices)["settings"].get(SOURCES, ()) if slices else ()
    return f"{symbol}({part}{'@' if sources else ''}{','.join(sources)})"


def _teachers(manifest: Manifest, read: Read) -> Iterator[tuple[str, str]]:
    """List the models that play the teacher; of a warmup that asks none, those whose rollouts it reads."""
    roles = list(manifest["settings"].get(SERVES, ())) or [TEACHER]
    asked = [(role, model) for role in roles if (model := _source(manifest, role))]
    yield from asked
    if asked:
        return
    for role, source in manifest["inputs"].items():
        if role.partition(".")[0] == _CACHE and (model := _source(read(**source), "model")):
            yield role.partition(".")[2] or TEACHER, model


def _source(manifest: Manifest, role: str) -> str | None:
    """Return the digest of the stage, or the location of the model, that a stage reads in a role."""
    if role in manifest["inputs"]:
        return manifest["inputs"][role]["digest"]
    return manifest.get("externals", {}).get(role, {}).get("location")
