"""The shape of the package: imports point one way, names are used once, folders and the kernel stay small."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "verl_s2d"
ORDER = (
    *(
        "errors",
        "logs",
        "redaction",
        "user_code",
        "validation",
        "arguments",
        "objectives",
        "data",
        "metrics",
        "platforms",
        "sandbox",
        "recipe",
        "sampling",
        "verifiers",
    ),
    *("verl_settings", "teachers", "signals", "workflow", "stages", "sizing", "checks", "report", "planner"),
    *("starter", "gpu_check", "plugin", "command_line", "cli", "__main__"),
)
"""Rooms of the package. A module imports from its own room and from those before it."""

KNOWN = {
    ("recipe", "stages"): "the type of the builder that rows are functions of",
}
"""Imports that point up, with their reasons. An entry that is no longer needed has to go."""

SAME_MODULES = {"command": "the subcommands gpu-check and evaluate"}
"""Names of several modules, beside those that every stage and every part of gpu-check may have."""

SAME_CLASSES = frozenset(
    [
        "Estimate",
        "Finding",
        "Options",
        "Part",
        "Problem",
        "Rollouts",
        "Sampler",
        "Section",
        "Settings",
        "Warmup",
    ]
)
"""Names of several classes, which are to become one each."""

MOST_FILES = 20
MOST_KERNEL_LINES = 4_000

_VAGUE = re.compile(r"(Of|What|Where|Whether|Who|Which|How)\b")


@cache
def modules() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    """Rooms that a module imports from, wherever in it the import stands."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for parts in (name.split(".") for name in names):
            if parts[0] == "verl_s2d" and len(parts) > 1 and parts[1] in ORDER:
                yield parts[1]


def test_every_room_has_its_place():
    rooms = {room(path) for path in modules()} - {"__init__"}
    assert rooms <= set(ORDER)


def test_imports_point_one_way():
    upward = defaultdict(set)
    for path, tree in modules().items():
        here = room(path)
        if here == "__init__":
            continue
        for there in set(imported(tree)):
            if ORDER.index(there) > ORDER.index(here):
                upward[here, there].add(str(path.relative_to(ROOT)))
    new = {f"{here} -> {there}": sorted(files) for (here, there), files in upward.items() if (here, there) not in KNOWN}
    assert not new
    assert not KNOWN.keys() - upward.keys(), "mended: take it from KNOWN"


def shared_by_design(path: Path) -> bool:
    inside = path.relative_to(PACKAGE).parts
    if path.stem == "__init__" or inside[:2] == ("gpu_check", "parts"):
        return True
    return inside[0] == "stages" and path.stem in ("stage", "trainer", "worker")


def test_a_module_name_is_used_once():
    stems = Counter(path.stem for path in modules() if not shared_by_design(path))
    assert {stem for stem, count in stems.items() if count > 1} == SAME_MODULES.keys()


def test_a_class_name_is_used_once():
    names = Counter(
        node.name for tree in modules().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1 and not name.startswith("_")} == SAME_CLASSES


@pytest.mark.parametrize("top", ["verl_s2d", "tests", "recipes", "benchmarks"])
def test_folders_are_small(top):
    kinds = {".py", ".yaml", ".json", ".md", ".sh", ".html", ".css", ".patch"}
    files = Counter(path.parent.relative_to(ROOT) for path in (ROOT / top).rglob("*") if path.suffix in kinds)
    assert {str(folder): count for folder, count in files.items() if count > MOST_FILES} == {}


def test_the_kernel_is_small():
    assert sum(len(path.read_text().splitlines()) for path in modules() if room(path) == "workflow") < MOST_KERNEL_LINES


def test_docstrings_begin_with_what_their_object_does():
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for top in ("verl_s2d", "tests", "recipes", "benchmarks")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, documented) and (text := ast.get_docstring(node)) and _VAGUE.match(text)
    ]
    assert found == [], "\n".join(found)


def test_no_test_imports_a_test():
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in (ROOT / "tests").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) [\w.]*\b(test_\w+|conftest)\b", line)
        or re.match(r"\s*from tests.* import test_", line)
    ]
    assert not found


def test_no_test_asserts_on_its_own_duration():
    """A busy machine fails such a test, and an idle one passes it whatever the code does. benchmarks/ measures."""
    timed = re.compile(r"assert .*\b(monotonic|perf_counter|time)\(\) - \w+ <")
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if any(timed.search(line) for line in path.read_text().splitlines())
    }
    assert not found


def test_nothing_asks_for_a_kind_of_stage_by_its_name():
    """A node carries its stage; whoever needs to know something of it asks the stage."""
    found = []
    for path, tree in modules().items():
        for node in ast.walk(tree):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            if any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides) and room(path) != "data":
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []
