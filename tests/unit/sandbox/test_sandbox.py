"""`Sandbox`: programs and functions, what their results say, and runs that end for no fault of theirs."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.sandbox.boxes import leftovers
from verl_s2d.errors import Unscored, UserError
from verl_s2d.platforms import helper_process
from verl_s2d.sandbox import syscall_filter
from verl_s2d.sandbox.process_tree import descendants
from verl_s2d.sandbox.program import Program, RunLimits
from verl_s2d.sandbox.sandbox import CallFailed, Sandbox


def test_input_and_output(sandbox):
    result = sandbox.run(Program("import sys\nprint(input()[::-1])\nsys.stderr.write('note')\nexit(3)", "abc\n"))
    assert (result.ending, result.status, result.stdout, result.stderr) == ("ended", 3, "cba\n", "note")
    assert not result.succeeded


def test_input_larger_than_a_pipe(sandbox):
    result = sandbox.run(Program("print(len(input()))", "x" * (3 << 20)))
    assert result.stdout == f"{3 << 20}\n"


def test_files_and_a_directory_of_its_own(sandbox):
    source = "import os\nprint(os.getcwd(), sorted(os.listdir()), open('data.txt').read())\nopen('kept', 'w')"
    for _ in range(2):
        result = sandbox.run(Program(source, files={"data.txt": "seven"}))
        assert result.stdout == "/box ['data.txt', 'main.py'] seven\n"


def test_text_that_is_no_unicode(sandbox):
    assert sandbox.run(Program("print(ascii(input()))", "\udce9")).stdout == "'\\udce9'\n"
    assert sandbox.run(Program("import os\nos.write(1, bytes([255]))")).stdout == "\ufffd"


def test_programs_are_main_with_exit_and_threads(sandbox):
    source = """
import threading, pickle, sys
class A: pass
assert __name__ == "__main__" and pickle.loads(pickle.dumps(A())).__class__ is A
sys.setrecursionlimit(100_000)
def deep(n): return n and deep(n - 1)
threading.stack_size(64 << 20)
thread = threading.Thread(target=lambda: print(deep(50_000)))
thread.start(); thread.join()
quit()
"""
    assert sandbox.run(Program(source)).stdout == "0\n"


def test_installed_packages(sandbox):
    assert sandbox.run(Program("import numpy\nprint(numpy.arange(3).sum())")).stdout == "3\n"


def test_equal_programs_give_equal_output(sandbox):
    outputs = {sandbox.run(Program("print({'a', 'b', 'c', 'd', 'e'})")).stdout for _ in range(3)}
    assert len(outputs) == 1


def test_reasons(sandbox):
    assert sandbox.run(Program("1/0")).reason() == "exit status 1: ZeroDivisionError: division by zero"
    assert sandbox.run(Program("while True: pass"), RunLimits(seconds=0.2)).reason() == "limit of time"
    assert sandbox.run(Program("import os\nos.abort()")).reason() == "killed by signal 6"
    assert sandbox.run(Program("")).reason() == "ended"


def test_several_threads_share_the_slots():
    sandbox, found = Sandbox(slots=2), {}
    try:
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: sandbox.run(Program(f"print({n})")).stdout}))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        assert found == {n: f"{n}\n" for n in range(8)}
        assert len(sandbox.pids()) <= 2
    finally:
        sandbox.close()


def kill_when_running(sandbox: Sandbox, times: int, whom: str) -> threading.Thread:
    """Kill the program of each run, or its server, as soon as it is there."""

    def kill() -> None:
        killed: set[int] = set()
        deadline = time.monotonic() + 300
        while len(killed) < times and time.monotonic() < deadline:
            for server in sandbox.pids():
                tree = list(descendants(server))
                victim = server if whom == "server" else tree[-1]
                if len(tree) == 4 and victim not in killed:
                    killed.add(victim)
                    os.kill(victim, signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.parametrize("whom", ["program", "server"])
def test_a_run_that_is_killed_once_is_repeated(sandbox, whom):
    thread = kill_when_running(sandbox, 1, whom)
    result = sandbox.run(Program("import time\ntime.sleep(1)\nprint('done')"))
    thread.join(600)
    assert result.stdout == "done\n"
    assert leftovers(sandbox) == []


@pytest.mark.parametrize("whom", ["program", "server"])
def test_a_run_that_is_always_killed_is_unscored(sandbox, whom):
    thread = kill_when_running(sandbox, 3, whom)
    with pytest.raises(Unscored, match="killed"):
        sandbox.run(Program("import time\ntime.sleep(1000)"))
    thread.join(600)
    assert sandbox.run(Program("print(1)")).stdout == "1\n"


def test_boxes_end_with_their_owner(sandbox):
    source = f"""
import sys
sys.path[:] = {sys.path!r}
from verl_s2d.sandbox.sandbox import Sandbox
from verl_s2d.sandbox.program import Program
sandbox = Sandbox(slots=1)
sandbox.run(Program(""))
print(sandbox.pids()[0], flush=True)
sandbox.run(Program("import time\\ntime.sleep(1000)"))
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True) as owner:
        server, deadline = int(owner.stdout.readline()), time.monotonic() + 300
        while len(tree := list(descendants(server))) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        owner.kill()
    while any(map(_runs, tree)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, tree))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def caller():
    sandbox = Sandbox("tests.support.sandbox.called_in_box:measure", slots=1)
    yield sandbox
    sandbox.close()


def test_calls_a_function(sandbox, caller):
    assert caller.call(text="1 + 1") == {"value": 2, "length": 5}
    assert caller.call(text="__import__('os').getuid()")["value"] == 65534


def test_a_call_that_fails(sandbox, caller):
    with pytest.raises(CallFailed, match="ZeroDivisionError"):
        caller.call(text="1 / 0")
    with pytest.raises(CallFailed, match="limit of time"):
        caller.call(RunLimits(seconds=0.2), text="[0 for _ in iter(int, 1)]")
    with pytest.raises(CallFailed, match="not JSON"):
        caller.call(text="__import__('os')._exit(0)")


def test_what_a_function_prints_is_no_result(sandbox, caller):
    assert caller.call(text="print('[1]')")["value"] is None


def test_a_function_that_does_not_load():
    with pytest.raises(UserError, match="No module named"):
        Sandbox("no_such_module:f", slots=1).call()


def test_no_isolation_is_refused(monkeypatch):
    sandbox = Sandbox(slots=1)
    spoilt = helper_process._CODE.replace(
        "importlib.import_module(",
        "from verl_s2d.sandbox import namespaces\nnamespaces._NEW = 1 << 40\nimportlib.import_module(",
    )
    monkeypatch.setattr(helper_process, "_CODE", spoilt)
    with pytest.raises(UserError, match="isolated") as error:
        sandbox.check()
    assert error.value.key == "verifier.allow_unsandboxed"
    with pytest.raises(Unscored):
        sandbox.run(Program(""))
    sandbox.close()


def test_without_isolation_limits_hold_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    sandbox = Sandbox(slots=1, allow_unsandboxed=True)
    sandbox.check()
    result = sandbox.run(Program("import os\nopen('f', 'w').write('x')\nprint(os.getcwd(), 'SECRET' in os.environ)"))
    directory, secret = result.stdout.split()
    assert secret == "False"
    assert not Path(directory).exists()
    assert sandbox.run(Program("while True: pass"), RunLimits(seconds=0.2)).ending == "time"
    daemon = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  print(os.getpid(), flush=True)\n  time.sleep(1000)"
    result = sandbox.run(Program(f"{daemon}\ntime.sleep(1)"))
    assert result.succeeded
    assert not _runs(int(result.stdout))
    assert leftovers(sandbox) == []
    sandbox.close()


def test_the_filter_is_a_program_of_forward_jumps():
    code = syscall_filter.instructions()
    assert len(code) % 8 == 0
    count = len(code) // 8
    assert count <= 4096
    for at, (operation, if_true, if_false, _) in enumerate(struct.iter_unpack("HBBI", code)):
        if operation & 7 == 5:
            assert at + 1 + max(if_true, if_false) < count
