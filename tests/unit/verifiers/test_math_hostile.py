"""Hostile responses, and verifier processes that die: a call always returns, and leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT

pytest.importorskip("math_verify")
from tests.support.verifiers.fuzz import Fuzz, fuzz
from tests.support.verifiers.hostile_latex import KINDS, TOKENS, TRUTHS, boxed
from verl_s2d.platforms import helper_process
from verl_s2d.verifiers import process_client
from verl_s2d.verifiers import process_pool as pools
from verl_s2d.verifiers import unsettled as unsettled_log
from verl_s2d.verifiers.math.answer_limits import is_too_complex
from verl_s2d.verifiers.math.mathematics import Options, Verdict, judge
from verl_s2d.verifiers.process_client import VerifierClient
from verl_s2d.verifiers.score import Unscored
from verl_s2d.verifiers.unsettled import collect_unsettled
from verl_s2d.verifiers.verifier_process import MEGABYTES

BOMB = r"\binom{10000000000}{5000000000}"
"""Computed while it is parsed, in C code: no limit but that of the process can stop it."""
FAST = Options(seconds=1.0)


@pytest.fixture
def pool():
    one = pools.Pool(1)
    yield one
    one.close()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """False for what has ended, zombies included."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_three_hundred_cases():
    found = fuzz(Fuzz(cases=300, seed=1))
    assert found.failures == [] and sum(found.calls.values()) == 300
    assert found.growth < 50


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(), st.lists(st.sampled_from(TOKENS), max_size=40).map("".join)), st.sampled_from(TRUTHS))
def test_any_text(text, truth):
    for response in (boxed(text), f"Answer: {text}", text):
        assert isinstance(judge(response, truth, FAST), Verdict)


@given(st.text(alphabet=st.characters(codec=None, categories=["Cs", "Cc", "Cn", "Co"]), min_size=1).filter(str.strip))
def test_half_characters_and_controls_are_no_answer(text):
    assert judge(boxed("1" + text), "1", FAST).how in ("screened", "none", "text", "number", "different")


@pytest.mark.parametrize("kind", ["deep", "endless", "long", "control"])
def test_never_right_and_never_slow(kind):
    r = random.Random(kind)
    for _ in range(20):
        response = KINDS[kind](r)
        started = time.process_time()
        verdict = judge(response, "-99", FAST)
        assert not verdict.correct and time.process_time() - started < 1.0


@pytest.mark.parametrize("response", [None, 3, b"\\boxed{3}", ["3"]])
def test_what_is_no_text(response):
    assert judge(response, "3") == Verdict(False, "none")


def test_processor_time_is_limited_in_c_code(pool):
    assert pool.compare("5", "5", 10.0) == "equal"
    assert pool.compare("5", BOMB, 0.3) == "timeout"
    assert pool.compare("5", "5", 10.0) == "equal"


def test_an_equation_is_compared_by_its_last_side_at_points_first(pool):
    """Simplified as math-verify does, it takes seconds."""
    assert pool.compare("5", "5", 10.0) == "equal"
    assert pool.compare("7", r"x^{5} - x - 1 = \sin(x) y^{99}", 0.5) == "different"
    assert pool.compare(r"\sin(y)^2", r"f(y) = 1 - \cos(y)^2", 10.0) == "equal"


def test_memory_is_limited(pool):
    outcome = pool.compare("5", r"\operatorname{zeros}(20000, 20000)", 30.0)
    assert outcome in ("different", "raised", "died")
    (parent,) = pool.pids()
    assert wait_for(lambda: len(children(parent)) == 1)
    for pid in (parent, *children(parent)):
        peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmPeak"))
        assert int(peak.split()[1]) <= MEGABYTES * 1024
    assert pool.compare("5", "5", 10.0) == "equal"


@pytest.mark.parametrize("victim", ["child", "parent", "both"])
def test_killed_in_the_middle(pool, victim):
    assert pool.compare("5", "5", 10.0) == "equal"
    (parent,) = pool.pids()
    (child,) = children(parent)
    outcomes = []
    caller = threading.Thread(target=lambda: outcomes.append(pool.compare("5", BOMB, 1.0)))
    caller.start()
    time.sleep(0.3)
    for pid in {"child": [child], "parent": [parent], "both": [parent, child]}[victim]:
        os.kill(pid, signal.SIGKILL)
    caller.join(60)
    # The second attempt runs into the time limit.
    assert outcomes == ["timeout"]
    assert pool.compare("5", "5", 10.0) == "equal" and pool.compare("5", r"\sqrt{2}", 10.0) == "different"
    assert wait_for(lambda: not alive(child))


def test_killed_while_idle(pool):
    for _ in range(3):
        assert pool.compare("5", "5", 10.0) == "equal"
        for child in children(pool.pids()[0]):
            os.kill(child, signal.SIGKILL)
        assert pool.compare("5", "6", 10.0) == "different"
        os.kill(pool.pids()[0], signal.SIGKILL)
    assert pool.compare("5", "5", 10.0) == "equal"


@pytest.mark.parametrize("victims", ["child", "parent and child"])
def test_a_process_that_is_stopped_is_replaced(pool, victims, monkeypatch):
    assert pool.compare("5", "5", 10.0) == "equal"
    (parent,) = pool.pids()
    (child,) = children(parent)
    monkeypatch.setattr(process_client, "_WALL_SECONDS", 3.0)
    monkeypatch.setattr(process_client, "_WALL_FACTOR", 0)
    monkeypatch.setattr(process_client, "_GRACE_SECONDS", 0.5)
    for pid in [child] if victims == "child" else [parent, child]:
        os.kill(pid, signal.SIGSTOP)
    with collect_unsettled() as unsettled:
        assert pool.compare("7", "7", 10.0) == "equal"
    assert (pool.pids() == [parent]) == (victims == "child") and unsettled == []


def test_a_process_that_waits_for_a_processor_is_not_overdue(pool):
    """A stopped child gets no processor time, like one of many on a busy machine."""
    assert pool.compare("5", "5", 10.0) == "equal"
    (child,) = children(pool.pids()[0])
    os.kill(child, signal.SIGSTOP)
    outcomes = []
    caller = threading.Thread(target=lambda: outcomes.append(pool.compare("7", "7", 0.2)))
    caller.start()
    time.sleep(1.5)
    os.kill(child, signal.SIGCONT)
    caller.join(60)
    assert outcomes == ["equal"] and children(pool.pids()[0]) == [child]


def test_no_verdict_is_logged_and_counted(pool, watch_log):
    log = watch_log(unsettled_log, "_log")
    with collect_unsettled() as unsettled:
        assert pool.compare("5", "5", 10.0) == "equal"
        assert pool.compare("5", BOMB, 0.2) == "timeout"
    (problem,) = unsettled
    assert "binom" in problem and "0.2 s and 0.4 s" in problem and problem in log.getvalue()


KILLED_AT_ITS_START = "import os, signal; {condition} and os.kill(os.getpid(), signal.SIGKILL)\n"


def test_killed_at_its_start(pool, monkeypatch, tmp_path):
    """The first two starts fail; the call does not notice."""
    count = f"open({str(tmp_path / 'starts')!r}, 'a+').write('x') and os.path.getsize({str(tmp_path / 'starts')!r}) < 3"
    killed = KILLED_AT_ITS_START.format(condition=count)
    monkeypatch.setattr(helper_process, "_CODE", killed + helper_process._CODE)
    assert pool.compare("5", "5", 10.0) == "equal"
    assert len((tmp_path / "starts").read_text()) == 3


def test_a_process_that_never_starts_leaves_the_answer_unscored(pool, monkeypatch):
    monkeypatch.setattr(helper_process, "_CODE", KILLED_AT_ITS_START.format(condition=True))
    monkeypatch.setattr(pools, "_PAUSE_SECONDS", 0.001)
    with collect_unsettled() as unsettled, pytest.raises(Unscored, match="does not start: it was killed"):
        pool.compare("5", "5", 10.0)
    assert pool.pids() == [] and unsettled == []


def test_a_process_that_is_killed_every_time_leaves_the_answer_unscored(pool, monkeypatch):
    monkeypatch.setattr(pools, "_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(VerifierClient, "ask", lambda *_: "killed")
    with collect_unsettled() as unsettled, pytest.raises(Unscored, match="killed from outside"):
        pool.compare("5", "5", 10.0)
    assert unsettled == []


def test_close_leaves_no_processes(pool):
    pool.compare("5", BOMB, 0.2)
    (parent,) = pool.pids()
    wait_for(lambda: children(parent) != [])
    (child,) = children(parent)
    pool.close()
    assert pool.pids() == [] and not Path(f"/proc/{parent}").exists()
    assert wait_for(lambda: not alive(child))
    assert pool.compare("5", "5", 10.0) == "equal"


SCRIPT = r"""
import os, signal, sys, threading, time
from verl_s2d.verifiers.math.mathematics import judge, Options
from verl_s2d.verifiers.process_pool import shared
threads = [threading.Thread(target=judge, args=(r"\boxed{\sqrt{%d}}" % n, r"\pi")) for n in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
pids = shared().pids()
print(*pids, *(c for p in pids for c in open(f"/proc/{p}/task/{p}/children").read().split()), flush=True)
"""


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        r"threading.Thread(target=shared().compare, args=('5', r'\binom{10000000000}{5000000000}', 2.0)).start()"
        "; time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_nothing_outlives_its_owner(end):
    done = subprocess.run([sys.executable, "-c", SCRIPT + end], cwd=ROOT, capture_output=True, text=True, timeout=300)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 2, done.stderr
    assert wait_for(lambda: not any(alive(pid) for pid in pids))


def test_a_forked_copy_has_processes_of_its_own():
    assert judge(boxed(r"\sqrt{8}"), r"2\sqrt{2}").correct
    before = pools.shared().pids()
    pid = os.fork()
    if pid == 0:
        fine = judge(boxed(r"\sqrt{8}"), r"2\sqrt{2}").correct and not set(pools.shared().pids()) & set(before)
        pools.shared().close()
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert judge(boxed(r"\sqrt{18}"), r"3\sqrt{2}").correct and pools.shared().pids() == before


def test_text_is_never_run(pool, tmp_path):
    marker = tmp_path / "marker"
    r = random.Random(0)
    for _ in range(60):
        response = KINDS["code"](r).replace("{marker}", str(marker))
        judge(response, "5", FAST)
        # Past the screens as well.
        pool.compare("5", response, 2.0)
        pool.compare(response, response, 2.0)
    assert not marker.exists()


def test_the_child_refuses_code_from_text(tmp_path):
    tried = textwrap.dedent(
        r"""
        import os, socket, subprocess, sympy
        from verl_s2d.verifiers.verifier_process import _confine
        _confine()
        attempts = [lambda: eval("1"), lambda: exec("1"), lambda: sympy.sympify("1"), lambda: sympy.lambdify([], 1)]
        attempts += [lambda: open("f", "w"), lambda: os.system("true"), lambda: subprocess.run("true"), os.fork]
        attempts += [lambda: socket.create_connection(("127.0.0.1", 9))]
        for number, attempt in enumerate(attempts):
            try:
                attempt()
                print("allowed", number)
            except (PermissionError, sympy.SympifyError):
                print("refused")
        """
    )
    # To a pipe: the child may not write to files.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", tried], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split("\n")[:-1] == ["refused"] * 9, done.stdout + done.stderr


def test_screens_let_all_the_truths_pass():
    assert [t for t in TRUTHS if is_too_complex(t, "1")] == []
