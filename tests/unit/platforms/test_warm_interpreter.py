"""A fork of the host behaves as the interpreter that was asked for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.warm_host import Host, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the warm host is for Linux")

WARM = "import sys; print('verl_s2d.platforms.cpu.warm.host' in getattr(sys, 'orig_argv', []))"


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("host"), preload="random,numpy,no_such_module,multiprocessing.spawn,wandb")
    yield host
    assert host.process.poll() is None, host.log.read_text()
    host.close()


def test_runs_in_a_fork_of_the_host(host):
    assert host.run("-c", WARM).stdout == "True\n"


def test_arguments_environment_directory_and_input(host, tmp_path):
    show = "import sys, os; print([sys.argv, os.environ.get('NAME'), os.getcwd(), sys.stdin.read()])"
    done = host.run(
        "-c", show, "a b", "ü", cwd=tmp_path, env={**os.environ, "NAME": "välue\n2"}, input="in", stdin=None
    )
    assert done.stdout == f"{[['-c', 'a b', 'ü'], 'välue' + chr(10) + '2', str(tmp_path), 'in']}\n"
    assert host.run("-c", "import os; print('NAME' in os.environ)").stdout == "False\n"


def test_modules_and_scripts_are_main_and_find_their_neighbours(host, tmp_path):
    (tmp_path / "neighbour.py").write_text("NAME = 'neighbour'")
    text = "import sys, neighbour\nif __name__ == '__main__': print(neighbour.NAME, sys.argv[1:], __file__)"
    (tmp_path / "program.py").write_text(text)
    path = str(tmp_path / "program.py")
    assert host.run("-m", "program", "x", cwd=tmp_path).stdout == f"neighbour ['x'] {path}\n"
    assert host.run(path, "y").stdout == f"neighbour ['y'] {path}\n"
    elsewhere = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert host.run("-m", "program", env=elsewhere).stdout == f"neighbour [] {path}\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("raise SystemExit('words')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("import os; os._exit(255)", 255),
    ],
)
def test_ends_as_python_ends(host, code, expected):
    assert host.run("-c", code).returncode == expected
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == expected


def test_finishes_threads_and_exit_functions(host):
    code = (
        "import atexit, threading, time\natexit.register(print, 'bye')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()"
    )
    assert host.run("-c", code).stdout == "thread\nbye\n"


def test_an_exception_goes_to_the_programs_own_hook(host):
    done = host.run("-c", "import sys\nsys.excepthook = lambda *e: print('hook', e[0].__name__)\n1 / 0")
    assert done.stdout == "hook ZeroDivisionError\n"


@pytest.fixture(autouse=True)
def nothing_is_ignored():
    """Whatever these tests are started by (nohup, a shell's background job), their processes start undisturbed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_program_and_its_answer_comes_back(host, number):
    code = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\ntime.sleep(30)"
    )
    process = host.start("-c", code)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(10) == 42
    unhandled = host.start("-c", "import time; print('ready', flush=True); time.sleep(30)")
    assert unhandled.stdout.readline() == "ready\n"
    unhandled.send_signal(number)
    assert unhandled.wait(10) == -number


def test_a_signal_to_a_program_that_is_faster_than_its_interpreter_is_not_lost(host):
    code = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\ntime.sleep(30)"
    )
    host.process.send_signal(signal.SIGSTOP)
    process = host.start("-c", code)
    state = Path(f"/proc/{process.pid}/stat")
    asleep = 0
    while asleep < 20:  # it has asked, and waits
        time.sleep(0.05)
        asleep = asleep + 1 if state.read_text().rpartition(")")[2].split()[0] == "S" else 0
    process.send_signal(signal.SIGSTOP)
    host.process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 42


def test_a_signal_that_is_ignored_stays_ignored(host):
    code = "import time; print('ready', flush=True); time.sleep(0.5); print('done')"
    script = f'trap "" HUP; exec {host.python} -c "{code}"'
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=10)[0] == "done\n" and process.returncode == 0


def test_a_program_may_handle_a_signal_that_it_inherited_as_ignored(host, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGHUP, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\ntime.sleep(30)"
    )
    script = f'trap "" HUP; exec {host.python} {program}'
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=10) == 42
    process.stdout.close()


def test_descriptors_keep_their_numbers_however_many(host):
    pipes = [os.pipe() for _ in range(300)]
    wanted = [write for _, write in pipes]
    code = "import os, sys\nfor n in sys.argv[1:]: os.write(int(n), n.encode())"
    done = host.run("-c", code, *map(str, wanted), pass_fds=wanted)
    assert done.returncode == 0, done.stderr
    for read, write in pipes:
        os.close(write)
        assert os.read(read, 100) == str(write).encode()
        assert os.read(read, 100) == b"", "nobody holds the other end any more"
        os.close(read)


def test_a_closed_standard_stream_is_closed(host):
    script = f'exec {host.python} -c "import sys; print(sys.stdin)" <&-'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout == "None\n"


def test_limits_and_mask_are_those_of_the_asker(host):
    show = "import os, resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.umask(0))"
    script = f"ulimit -S -n 333; umask 027; exec {host.python} -c '{show}'"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert done.stdout == f"333 {0o027}\n", done.stderr


def test_output_is_unbuffered_when_asked_for(host):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    code = "import os; print('a', end=''); os.write(1, b'b'); print('c', end='')"
    assert host.run("-c", code, env=environment).stdout == "bac"
    assert host.run("-u", "-c", code, env=environment).stdout == "abc"
    assert host.run("-c", code, env=environment | {"PYTHONUNBUFFERED": "1"}).stdout == "abc"


def test_a_request_larger_than_a_socket_buffer(host):
    # The longest single argument that Linux allows is 128 KiB.
    arguments = ["x" * 120_000] * 10
    done = host.run("-c", "import sys; print(sum(map(len, sys.argv[1:])))", *arguments)
    assert done.stdout == "1200000\n", done.stderr


def test_forks_do_not_share_random_numbers(host):
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    seen = {number for _ in range(3) for number in host.run("-c", code).stdout.split()}
    assert len(seen) == 6


def test_a_fork_has_its_own_directory_for_temporary_files(tmp_path):
    (tmp_path / "asking.py").write_text("import tempfile; tempfile.gettempdir()")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    host = Host(tmp_path / "h", preload="asking", PYTHONPATH=path)
    try:
        own = tmp_path / "own"
        own.mkdir()
        told = host.run("-c", "import tempfile; print(tempfile.gettempdir())", env=os.environ | {"TMPDIR": str(own)})
        assert told.stdout.strip() == str(own)
    finally:
        host.close()


def test_multiprocessing_spawn_in_a_fork_starts_forks(host, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, os, sys\n"
        "def child(queue, number):\n"
        "    queue.put((number, 'verl_s2d.platforms.cpu.warm.host' in sys.orig_argv, os.getpid()))\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        "    children = [context.Process(target=child, args=(queue, n)) for n in range(2)]\n"
        "    [c.start() for c in children]\n"
        "    found = sorted(queue.get(timeout=20) for _ in children)\n"
        "    [c.join() for c in children]\n"
        "    print([f[:2] for f in found], [c.exitcode for c in children], len({f[2] for f in found}))\n"
    )
    done = host.run(str(program))
    assert done.stdout == "[(0, True), (1, True)] [0, 0] 2\n", done.stderr


def test_programs_started_through_sys_executable_are_warm(host):
    code = (
        f"import subprocess, sys; print(subprocess.check_output([sys.executable, '-c', {WARM!r}], text=True), end='')"
    )
    assert host.run("-c", code).stdout == "True\n"


@pytest.mark.parametrize(
    ("args", "stdin", "expected"),
    [
        (["-"], WARM, "False\n"),
        ([], WARM, "False\n"),
        (["-I", "-c", WARM], None, "False\n"),
        (["-X", "dev", "-c", WARM], None, "False\n"),
        (["-V"], None, f"Python {sys.version.split()[0]}\n"),
    ],
)
def test_what_a_fork_cannot_do_is_left_to_the_ordinary_interpreter(host, args, stdin, expected):
    done = subprocess.run([str(host.python), *args], input=stdin or "", capture_output=True, text=True, timeout=30)
    assert done.stdout == expected, done.stderr


def test_a_script_that_does_not_exist_is_reported_by_python(host):
    done = host.run("nowhere.py")
    assert done.returncode == 2 and "can't open file" in done.stderr


def test_without_a_host_it_is_the_ordinary_interpreter(tmp_path):
    host = Host(tmp_path / "host")
    host.close()
    done = host.run("-c", WARM + "; raise SystemExit(3)")
    assert (done.stdout, done.returncode) == ("False\n", 3)


def test_a_host_that_takes_the_request_and_does_not_fork_means_a_cold_start(tmp_path):
    host = Host(tmp_path / "host")
    host.close()
    host.socket.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host.socket))
        listener.listen()
        process = host.start("-c", WARM)
        connection, _ = listener.accept()
        connection.recv(1 << 20)
        connection.close()
        assert process.communicate(timeout=30)[0] == "False\n"


def test_a_module_that_cannot_be_imported_is_only_noted(host):
    assert "not preloaded: no_such_module" in host.log.read_text()


def test_what_forks_would_delete_for_each_other_runs_in_each(host):
    """Modules that import wandb are preloaded; its temporary directories are made by the fork that uses it."""
    assert "wandb" not in host.log.read_text()
    assert host.run("-c", "import sys; print('wandb' in sys.modules)").stdout == "False\n"
    media = "import wandb; from wandb.sdk.data_types._private import MEDIA_TMP; print(MEDIA_TMP.name)"
    first, second = (host.run("-c", media).stdout.splitlines()[-1] for _ in range(2))
    assert first != second


def test_the_host_keeps_nothing_of_what_has_ended(host):
    def held() -> int:
        return len(list(Path(f"/proc/{host.process.pid}/fd").iterdir()))

    host.run("-c", "pass")
    before = held()
    for _ in range(20):
        host.run("-c", "pass")
    assert eventually(lambda: held() <= before)


def test_what_imports_print_is_not_repeated_by_forks(tmp_path):
    (tmp_path / "loud.py").write_text("print('imported')")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": ""}
    host = Host(tmp_path / "host", preload="loud", **environment)
    try:
        assert host.run("-c", "print('program')").stdout == "program\n"
        assert json.dumps(host.log.read_text()).count("imported") == 1
    finally:
        host.close()
