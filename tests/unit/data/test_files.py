"""Files appear whole or not at all; command lines are checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from verl_s2d import arguments
from verl_s2d.data.files import write_json, written_whole
from verl_s2d.errors import UserError


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_json_without_nan(tmp_path):
    write_json({"a": "ä"}, tmp_path / "new" / "x.json")
    assert json.loads((tmp_path / "new/x.json").read_text()) == {"a": "ä"}
    with pytest.raises(ValueError):
        write_json(float("nan"), tmp_path / "y.json")
    assert not list(tmp_path.glob("*y.json*"))


@dataclass(frozen=True)
class Options:
    out: str
    n: int = 1
    rate: float = 0.5
    labels: int | None = None
    trusted: bool = False
    set: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def test_arguments():
    given = [
        "--out",
        "a=b",
        "n=3",
        "rate=1e-3",
        "trusted=true",
        "set.x=1",
        "set.y=p=q",
        "extra.a=false",
        "extra.b=word",
    ]
    assert arguments.parse(given, Options) == Options(
        "a=b", 3, 1e-3, None, True, {"x": "1", "y": "p=q"}, {"a": False, "b": "word"}
    )
    assert arguments.parse(["out=d", "labels=5"], Options).labels == 5
    assert arguments.parse(["out=d", "labels=null"], Options).labels is None


@pytest.mark.parametrize(
    ("given", "key", "said"),
    [
        (["n=1"], "out", "missing"),
        (["out=d", "m=1"], "m", "Unknown"),
        (["out=d", "set=1"], "set", "Unknown"),
        (["out=d", "n.x=1"], "n.x", "Unknown"),
        (["out=d", "n=many"], "n", "wrong type"),
        (["out=d", "trusted=perhaps"], "trusted", "wrong type"),
        (["out=d", "n=1", "n=2"], "n", "twice"),
        (["out=d", "--n"], "n", "no value"),
        (["out=d", "word"], None, "key=value"),
    ],
)
def test_wrong_arguments(given, key, said):
    with pytest.raises(UserError, match=said) as caught:
        arguments.parse(given, Options)
    assert caught.value.key == key


def test_misspelt_arguments_are_recognised():
    with pytest.raises(UserError, match="Did you mean labels"):
        arguments.parse(["out=d", "label=3"], Options)


def test_a_user_error_ends_the_process_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["module", "n=1"])
    with pytest.raises(SystemExit) as caught:
        arguments.run(print, Options)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: A required key is missing.\n  key:    out\n")
