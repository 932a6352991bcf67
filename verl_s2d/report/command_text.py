"""The output of plan, status, gc, verify and prepare as text, from the data that --json prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_s2d.report.size_tables import size_parts
from verl_s2d.report.table_text import Column, Table, as_text, words
from verl_s2d.workflow.progress import duration

_PLANNED = {"cached": "cached", "partial": "resume", "missing": "build"}


def plan_text(view: Mapping[str, Any], *, overrides: bool) -> str:
    """Describe `views.plan_view`: a line per stage, then sizes where they are known.

    Args:
        overrides: add the command of every stage, one argument a line.
    """
    stages = view["stages"]
    todo = [stage for stage in stages if stage["state"] != "cached"]
    columns = [*words("stage", "state"), Column("does", False, wide=True), *words("directory", "rows")]
    lines = [
        [s["name"], _PLANNED[s["state"]], s["does"], f"{s['kind']}-{s['digest'][:12]}", ", ".join(s["rows"])]
        for s in stages
    ]
    parts = [f"{view['recipe']} in {view['run_dir']} ({view['device']})", Table("", columns, lines)]
    parts[1:1] = [measured_text(view)] if view["measured"] else []
    if overrides:
        parts += ["\n    ".join([f"{stage['name']}:", *stage["argv"]]) for stage in stages]
    steps = sum(stage["steps"] or 0 for stage in todo)
    parts.append(
        f"{len(stages)} stages, {len(stages) - len(todo)} cached, {len(todo)} to build ({steps} training steps)"
    )
    return as_text(*parts, *(size_parts(view) if "sizes" in view else ()))


def run_text(view: Mapping[str, Any]) -> str:
    """Describe in a few lines what a run is going to build, from `views.plan_view`."""
    todo = [stage for stage in view["stages"] if stage["state"] != "cached"]
    steps = sum(stage["steps"] or 0 for stage in todo)
    text = f"{view['recipe']} in {view['run_dir']}: {len(view['stages'])} stages, {len(todo)} to build"
    lines = [f"{text} ({steps} training steps)" if steps else text]
    if todo:
        lines.append(measured_text(view))
    return as_text(*lines)


def measured_text(view: Mapping[str, Any]) -> str:
    """Say what the recipe took elsewhere, or where estimates are."""
    return f"measured: {view['measured'] or 'not yet; `verl-s2d plan` estimates memory, disk and costs'}"


def status_text(view: Mapping[str, Any]) -> str:
    """Describe `views.status_view`: a line per stage."""
    stages, lines = view["stages"], []
    for stage in stages:
        spent = duration(stage["seconds"]) if "seconds" in stage else ""
        step = f"{stage['step']}/{stage['steps']}" if stage.get("steps") else ""
        lines.append([stage["name"], stage["state"], spent, step, str(stage.get("attempts", "")), _events(stage)])
    columns = [*words("stage", "state"), Column("time"), Column("step"), Column("attempts"), *words("events")]
    working = "a run is working here" if view["running"] else "no run is working"
    done = sum(stage["state"] == "done" for stage in stages)
    return as_text(
        f"{view['recipe']} in {view['run_dir']}: {working}",
        Table("", columns, lines),
        f"{done} of {len(stages)} stages done",
    )


def _events(stage: Mapping[str, Any]) -> str:
    events = [f"ALARM, {alarm['text']}" for alarm in stage.get("alarms", ())]
    if stopped := stage.get("stopped"):
        events.append(f"ended at step {stopped['steps']} by an alarm, the result is step {stopped['kept']}")
    if early := stage.get("until"):
        events.append(f"ended before its maximum: {early['reason']}")
    return "; ".join(events)


def gc_text(view: Mapping[str, Any]) -> str:
    """Describe `store.gc.Collection.data`: a line per path that no kept row needs."""
    kept, waste = view["kept"], view["waste"]
    lines = [
        [w["path"], size_text(w["bytes"]), f"left alone: {w['blocked']}" if w["blocked"] else w["why"]] for w in waste
    ]
    parts: list[str | Table] = [
        f"{view['run_dir']}, keeping rows {', '.join(kept['rows'])} and seeds {', '.join(map(str, kept['seeds']))}"
    ]
    parts += [Table("", [*words("path"), Column("size"), *words("reason")], lines)] if lines else []
    if waste and not view["built"]:
        parts.append("note: no stage of these rows is built here; has the recipe changed since the run?")
    count = sum(not w["blocked"] for w in waste)
    if not count:
        parts.append("nothing to remove")
    elif view["deleted"]:
        parts.append(f"removed {count} paths, {size_text(view['bytes'])}")
    else:
        parts += ["note: a run is working here: --delete would be refused"] if view["running"] else []
        parts.append(f"{count} paths, {size_text(view['bytes'])}. Nothing was removed; --delete removes them")
    return as_text(*parts)


def verify_text(view: Mapping[str, Any]) -> str:
    """Describe `store.verify.Verification.data`: a line per finding, damage first."""
    found = sorted(view["findings"], key=lambda finding: not finding["bad"])
    lines = [[f["path"], "DAMAGED" if f["bad"] else "note", f["what"]] for f in found]
    parts: list[str | Table] = [Table("", words("file", "state", "finding"), lines)] if lines else []
    parts.append(
        f"{view['finished']} finished and {view['unfinished']} unfinished stages, {size_text(view['bytes'])} of output "
        f"read: {'nothing is damaged' if view['ok'] else 'see the damage above'}"
    )
    if not view["ok"]:
        parts.append(
            "`verl-s2d run` sets a damaged stage aside and builds it again when another stage reads it; to avoid that, "
            "restore the files named above from a copy."
        )
    return as_text(*parts)


def prepare_text(manifest: Mapping[str, Any]) -> str:
    """Describe `data.prepare.prepare`'s manifest: a line per set, then overlaps and halves."""
    columns = ("rows", "identical", "same text", "unresolved", "overlapping", "problems")
    lines = []
    for name, one in manifest["sets"].items():
        copies = one["duplicates"]
        counts = [one["rows"], copies["identical"], copies["same_text"], copies["unresolved"]]
        lines.append([name, *(f"{n:,}" for n in (*counts, one["overlapping"], one["problems"]))])
    parts: list[str | Table] = [Table("", [*words("set"), *map(Column, columns)], lines)]
    settings, halves = manifest["settings"], manifest["halves"]
    for name in settings["eval"]:
        how = [overlap["how"] for overlap in manifest["overlaps"] if overlap["eval_set"] == name]
        if how:
            parts.append(f"{name}: {how.count('exact')} exact pairs, {how.count('ngram')} by {settings['ngram']}-grams")
    if manifest["overlaps"]:
        removed = settings["contamination"] == "remove"
        kept = "kept; a recipe refuses identical ones, contamination=remove drops all"
        parts.append(f"overlapping training problems: {'removed' if removed else kept}")
    parts.append(
        f"halves: 1H {halves['1h']:,}, 2H {halves['2h']:,} problems; seed {halves['seed']}, "
        f"digest {halves['digest'][:12]}"
    )
    return as_text(*parts)


def size_text(size: float) -> str:
    """`4.2 GiB`."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
