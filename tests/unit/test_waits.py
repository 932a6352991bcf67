"""No wait without a limit: the source is searched for calls that could last for ever."""

from __future__ import annotations

import ast

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "verl_s2d"
REASON = "# no limit: "
"""On the line of a wait, or the one before: why it may last, and what ends it."""

_UNLIMITED_WITHOUT_ARGUMENTS = ("wait", "join", "get", "acquire", "select", "result")
"""`d.get(key)` and `text.join(parts)` have an argument; a limit is one too."""
_NEEDS_TIMEOUT = ("communicate", "urlopen")
_SOCKET = ("recv", "recvmsg", "accept", "connect", "sendall", "sendmsg")
_OWN_LIMITS = ("probe", "_registration", "registration")
"""Receivers whose waits are limited inside: workflow.probe."""


def unlimited_waits(source: str) -> list[str]:
    """`line: code` of each wait without a limit and without a reason."""
    tree, lines = ast.parse(source), source.splitlines()
    limited_sockets = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.ClassDef)
        and any(isinstance(n, ast.Attribute) and n.attr in ("settimeout", "setblocking") for n in ast.walk(scope))
        for node in ast.walk(scope)
    }
    loops = [n for n in ast.walk(tree) if isinstance(n, ast.While) and _sleeps(n) and not _watches_the_clock(n)]
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and _waits(n, id(n) in limited_sockets)]
    return [
        f"{node.lineno}: {lines[node.lineno - 1].strip()}"
        for node in loops + calls
        if not any(REASON in line for line in lines[max(0, node.lineno - 2) : node.lineno])
    ]


def _waits(call: ast.Call, limited_socket: bool) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    name, owner = call.func.attr, _name(call.func.value)
    limit = any(k.arg is None or "timeout" in k.arg for k in call.keywords)
    arguments = [a for a in call.args if not (isinstance(a, ast.Constant) and a.value in (None, True))]
    if owner == "subprocess":
        return name in ("run", "call", "check_call", "check_output") and not limit
    if owner == "ray":
        return name in ("get", "wait") and not limit
    if owner == "os":
        return name == "wait" or (name == "waitpid" and "WNOHANG" not in ast.unparse(call))
    if name in _UNLIMITED_WITHOUT_ARGUMENTS:
        return not arguments and not limit and owner not in _OWN_LIMITS
    if name in _NEEDS_TIMEOUT:
        return not limit
    if name in _SOCKET:
        return not limited_socket
    return name == "readline"


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _sleeps(loop: ast.While) -> bool:
    return any(isinstance(n, ast.Call) and ast.unparse(n.func) in ("time.sleep", "sleep") for n in ast.walk(loop))


def _watches_the_clock(loop: ast.While) -> bool:
    return "monotonic()" in ast.unparse(loop)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_every_wait_has_a_limit_or_says_what_ends_it(file):
    assert unlimited_waits(file.read_text()) == []


@pytest.mark.parametrize(
    "code",
    [
        "process.wait()",
        "process.wait(None)",
        "thread.join()",
        "queue.get()",
        "queue.get(True)",
        "lock.acquire()",
        "future.result()",
        "selector.select()",
        "process.communicate()",
        "process.communicate(b'x')",
        "subprocess.run(['true'])",
        "subprocess.check_output(['true'])",
        "ray.get(reference)",
        "ray.wait([reference])",
        "os.waitpid(-1, 0)",
        "stream.readline()",
        "def f(s):\n    return s.recv(1)",
        "while not ready():\n    time.sleep(1)",
    ],
)
def test_the_search_finds(code):
    assert len(unlimited_waits(code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "process.wait(3)",
        "thread.join(timeout=3)",
        "', '.join(parts)",
        "mapping.get(key)",
        "queue.get(timeout=1)",
        "process.communicate(timeout=3)",
        "subprocess.run(['true'], timeout=3)",
        "ray.get(reference, timeout=3)",
        "os.waitpid(-1, os.WNOHANG)",
        "def f(s):\n    s.settimeout(3)\n    return s.recv(1)",
        "while time.monotonic() < deadline:\n    time.sleep(1)",
        "stream.readline()  # no limit: ends with its owner",
    ],
)
def test_the_search_leaves_alone(code):
    assert unlimited_waits(code) == []
