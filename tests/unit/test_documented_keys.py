"""Keys and defaults as documents, docstrings and comments give them are those of the code."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT
from verl_s2d.recipe import stage_settings
from verl_s2d.recipe.cluster_settings import Cluster
from verl_s2d.recipe.method_rows import MADE_ROWS, METHOD_ROWS, PROMPT_ROWS, ROUTED_ROWS
from verl_s2d.recipe.planner_settings import Planner
from verl_s2d.recipe.rows import ROWS
from verl_s2d.signals.credit.credit_registry import known_credits
from verl_s2d.signals.signal_registry import known_signals
from verl_s2d.stages.opd.config import OpdConfig

DOCUMENTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/README.md")]
PACKAGE = ROOT / "verl_s2d"
COMMANDS = sorted(path for path in PACKAGE.rglob("*.py") if re.search(r"^class Options\b", path.read_text(), re.M))
UNDOCUMENTED = {"poll_interval"}
"""Keys of `s2d` that nobody has to set."""


def defaults(kind: type) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        return {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()}


def test_keys_of_an_opd_command():
    rows = re.findall(r"^\| `\+s2d\.(\w+)` \| (.+?) \|", (ROOT / "docs" / "trainer-keys.md").read_text(), re.M)
    documented = {key: yaml.safe_load(value.strip("`")) for key, value in rows}
    plain = {k: v for k, v in defaults(OpdConfig).items() if v is None or isinstance(v, str | int | float)}
    assert documented == {key: value for key, value in plain.items() if key in documented}
    teacher = {"trust_remote_code"}
    assert not plain.keys() - documented.keys() - UNDOCUMENTED - teacher


def test_keys_that_opd_and_warmup_share_have_the_same_default():
    warmup = yaml.safe_load((PACKAGE / "stages" / "warmup" / "s2d_warmup.yaml").read_text())["s2d"]
    opd = defaults(OpdConfig)
    shared = warmup.keys() & opd.keys() - {"objective", "signal", "teacher", "models"}
    assert {"chunk_tokens", "skip_limit", "save_minutes"} <= shared
    assert {key: warmup[key] for key in shared} == {key: opd[key] for key in shared}


def test_keys_of_the_planner():
    rows = re.findall(r"^\| `planner\.([\w.]+)` \| (.+?) \|", "\n".join(map(Path.read_text, DOCUMENTS)), re.M)
    keys: dict[str, Any] = {}
    for name, value in Planner().model_dump().items():
        nested = isinstance(value, dict) and value
        keys |= {f"{name}.{inner}": default for inner, default in value.items()} if nested else {name: value}
    assert dict(rows).keys() == keys.keys()
    assert {key: yaml.safe_load(value) for key, value in rows if not isinstance(keys[key], list)} == {
        key: value for key, value in keys.items() if not isinstance(value, list)
    }


def test_times_of_a_recipe():
    """Documents write `cluster.name` (N) or (N on GPUs, M on a CPU)."""
    cuda, cpu = (Cluster().on(device) for device in ("cuda", "cpu"))
    saves = stage_settings.Trained(steps=1)
    found = set()
    for text in (path.read_text() for path in DOCUMENTS):
        for key, one, other in re.findall(r"`([\w.]+)` \(([\d,.]+)(?: on GPUs, ([\d,.]+) on a CPU)?\)", text):
            name = key.removeprefix("cluster.")
            if not hasattr(cuda, name) and not hasattr(saves, name):
                continue
            found.add(name)
            owners = (saves, saves) if hasattr(saves, name) else (cuda, cpu)
            assert [getattr(owner, name) for owner in owners] == [
                float(n.replace(",", "")) for n in (one, other or one)
            ]
    assert found == {"save_minutes", "step_minutes", "stall_minutes", "grace_seconds", "wait_minutes"}
    source = (PACKAGE / "recipe" / "cluster_settings.py").read_text()
    told = re.findall(r'    (\w+): [^\n]+\n    """[^"]*Null: (\d+) on cuda, (\d+) on cpu', source)
    assert {name for name, *_ in told} == {"stall_minutes", "step_minutes", "grace_seconds"}
    assert all([getattr(cuda, name), getattr(cpu, name)] == [float(a), float(b)] for name, a, b in told)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_command_line_is_as_its_docstring_shows_it(path):
    """Docstrings show optional arguments as [key=default], required ones without brackets."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    known = defaults(module.Options)
    shown = dict(re.findall(r"\[(?:args\.)?(\w+)=([^\]\s]+)\]", module.__doc__))
    for key, value in shown.items():
        if key.isupper() or value.isupper():
            continue
        assert key in known, f"[{key}=...] is no argument"
        if known[key] not in (None, "") and "|" not in value:  # of those the docstring has an example
            assert known[key] == yaml.safe_load(value), key


def test_no_text_gives_a_default_of_chunk_tokens():
    """It is in objectives/chunk_sizes.py; unit/sizing/test_memory.py holds `plan` to it."""
    files = [*DOCUMENTS, *PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.yaml")]
    lines = [(path, line) for path in files for line in Path(path).read_text().splitlines() if "chunk_tokens" in line]
    told = [f"{path}: {line}" for path, line in lines if re.search(r"default\D{0,12}\d|\b1,?024\b", line)]
    assert lines and not told


def features() -> str:
    return (ROOT / "docs" / "signals.md").read_text().partition("| feature | key |")[2].partition("\n\n")[0]


def test_every_feature_names_a_key_of_the_documents_and_a_test_that_exists():
    table = features()
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) > 20
    explained = "\n".join(path.read_text() for path in DOCUMENTS).replace(table, "")
    for feature, keys, *_, tests in rows:
        places = re.findall(r"`([\w/]+\.py)`", tests)
        parents = [str(Path(places[0]).parent / place) if "/" not in place else place for place in places]
        assert places and all((ROOT / "tests" / place).is_file() for place in parents), feature
        for key in re.findall(r"`([^`]+)`", keys):
            assert key.rpartition(": ")[2] in explained, (feature, key)


def test_every_signal_is_a_feature():
    assert not known_signals().keys() - set(re.findall(r"[a-z_]+", features()))


def tables_of_keys(head: str) -> dict[str, str]:
    """Name -> cell of keys, in the table of docs/signals.md whose first column has this head."""
    table = (ROOT / "docs" / "signals.md").read_text().partition(f"| {head} |")[2].partition("\n\n")[0]
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in table.splitlines()[2:]]
    return {cells[0].strip(" `"): cells[-1] for cells in rows}


def keys_in(cells: dict[str, str], name: str) -> dict[str, Any]:
    """Key -> default as its cell gives it; ... where it gives none. The row's own keys win over those it refers to."""
    found: dict[str, Any] = {}
    for other in re.findall(r"those of `(\w+)`", cells[name]):
        found |= keys_in(cells, other)
    own = re.sub(r"those of `\w+`", "", cells[name])
    for key, value in re.findall(r"(?:^|, |with )`(\w+)`( \{[^}]*\}| [^\s,:;]+)?", own.strip()):
        found[key] = yaml.safe_load(value) if value else ...
    return found


@pytest.mark.parametrize(("head", "known"), [("signal", known_signals), ("credit", known_credits)])
def test_keys_and_defaults_of_signals_and_credits(head, known):
    """The table has every key and no other; `gate`, which every advantage has, has a section of its own."""
    cells = tables_of_keys(head)
    assert cells.keys() == known().keys()
    for name, kind in known().items():
        fields = {field.alias or key: field for key, field in kind.model_fields.items() if key not in ("type", "gate")}
        told = keys_in(cells, name)
        assert told.keys() == fields.keys(), name
        for key, value in told.items():
            if fields[key].is_required():
                assert value is ... and f"`{key}`, required" in cells[name], (name, key)
            elif value is not ...:
                assert value == fields[key].get_default(call_default_factory=True), (name, key)
    sampled = keys_in(tables_of_keys("signal"), "sampled")
    assert ... not in sampled.values(), "no default is left out where a key is described"


def test_every_row_is_in_the_table_of_rows():
    text = (ROOT / "docs" / "rows.md").read_text()
    assert not {
        name for name in {**ROWS, **METHOD_ROWS, **PROMPT_ROWS, **MADE_ROWS, **ROUTED_ROWS} if f"`{name}`" not in text
    }
