"""Programs that attack the machine: each is contained, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.sandbox.boxes import leftovers
from verl_s2d.sandbox.program import Program, Result, RunLimits
from verl_s2d.sandbox.sandbox import Sandbox


def run(sandbox: Sandbox, source: str, **limits) -> Result:
    """Run a program; afterwards nothing of it is left on the machine."""
    mounts = Path("/proc/self/mountinfo").read_text()
    result = sandbox.run(Program(textwrap.dedent(source)), RunLimits(**limits))
    assert leftovers(sandbox) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    again = sandbox.run(Program("print('still here')"))
    assert again.stdout == "still here\n"
    return result


def test_fork_bomb(sandbox):
    result = run(
        sandbox,
        """
        import os
        most = 0
        while True:
            try:
                if os.fork() == 0:
                    continue
                most += 1
            except BlockingIOError:
                print("refused", most, flush=True)
                while True: pass
        """,
        seconds=1,
        processes=8,
    )
    assert result.ending == "time"
    assert max(int(line.split()[1]) for line in result.stdout.splitlines()) <= 8


def test_fork_bomb_that_ends_its_parents(sandbox):
    source = """
        import os
        while True:
            try:
                if os.fork(): os._exit(0)
            except OSError: pass
        """
    assert run(sandbox, source, seconds=1).status in (0, None)


def test_memory_bomb(sandbox):
    result = run(sandbox, "kept = [bytearray(1 << 20) for _ in range(100_000)]", memory_mb=128)
    assert result.ending == "memory" or "MemoryError" in result.stderr


def test_memory_bomb_of_several_processes(sandbox):
    source = """
        import os, time
        for _ in range(2): os.fork()
        kept = []
        for _ in range(60):
            kept.append(bytearray(b"x" * (1 << 20)))
        time.sleep(1000)
        """
    assert run(sandbox, source, memory_mb=128).ending == "memory"


@pytest.mark.parametrize(
    "reserve",
    [
        "os.memfd_create('kept')",
        "libc.syscall(29, 0, 1 << 30, 0o1600)",
        "libc.syscall(240, b'/queue', 0o102, 0o600, None)",
    ],
    ids=["memfd", "shared memory", "message queue"],
)
def test_memory_that_no_process_has(sandbox, reserve):
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of system calls are those of x86_64")
    source = f"""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        try: print({reserve}, ctypes.get_errno())
        except OSError as error: print(-1, error.errno)
        """
    assert run(sandbox, source).stdout.split() == ["-1", "1"]


def test_fills_the_disk_with_one_file(sandbox):
    result = run(sandbox, "with open('big', 'wb') as f:\n  while True: f.write(bytes(1 << 20))", disk_mb=8)
    assert result.status == 1
    assert "OSError" in result.stderr


def test_fills_the_disk_with_many_files(sandbox):
    source = """
        written = 0
        try:
            for number in range(1_000_000):
                with open(f"f{number}", "wb") as file: written += file.write(bytes(1 << 16))
        except OSError as error:
            print(written <= 8 << 20, error.errno)
        """
    assert run(sandbox, source, disk_mb=8).stdout == "True 28\n"


def test_fills_the_disk_with_empty_files(sandbox):
    source = """
        try:
            for number in range(1_000_000): open(f"f{number}", "wb").close()
        except OSError as error:
            print(number < 5000, error.errno)
        """
    assert run(sandbox, source).stdout == "True 28\n"


def test_reads_the_home_directory_and_etc(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    paths = ["/etc/passwd", "/etc/hostname", str(Path.home() / ".bashrc"), str(secret), str(Path(__file__).resolve())]
    paths += ["/proc/1/environ", "/proc/self/environ", "/sys/kernel", "/var/log", "/tmp", "/run"]
    source = f"""
        import os
        for path in {paths!r}:
            print(os.path.exists(path))
        """
    visible = [sys.base_prefix, *(p for p in sys.path if p.endswith("site-packages"))]
    expected = [str(any(Path(v).is_relative_to(p) for v in visible)) for p in paths]
    assert run(sandbox, source).stdout.split() == expected


def test_finds_nothing_in_its_environment(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    result = run(sandbox, "import os\nprint(os.environ)")
    assert "secret" not in result.stdout
    assert "HOME" in result.stdout


def test_opens_sockets(sandbox):
    source = """
        import socket
        for family in ("AF_INET", "AF_INET6", "AF_VSOCK", "AF_NETLINK", "AF_PACKET"):
            try: socket.socket(getattr(socket, family)); print("opened", family)
            except OSError as error: print(error.errno)
        here, there = socket.socketpair()
        here.send(b"a pair of one's own")
        print(there.recv(100).decode())
        """
    assert run(sandbox, source).stdout.splitlines() == ["1"] * 5 + ["a pair of one's own"]


def test_reaches_no_abstract_socket_of_the_machine(sandbox):
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0verl-s2d-test-{os.getpid()}")
        server.listen()
        name = server.getsockname()
        source = f"import socket\nsocket.socket(socket.AF_UNIX).connect({name!r})"
        assert "ConnectionRefusedError" in run(sandbox, source).stderr


def test_kills_its_parent(sandbox):
    servers = sandbox.pids()
    source = """
        import os
        for pid in (os.getppid(), 1, -1, 0, *range(2, 40_000, 7)):
            for number in (9, 15, 19):
                if pid == os.getpid() or (pid == 0 and number != 9): continue
                try: os.kill(pid, number)
                except OSError: pass
        print(os.getppid())
        """
    assert run(sandbox, source).stdout == "1\n"
    assert sandbox.pids() == servers


def test_sees_no_process_of_the_machine(sandbox):
    with subprocess.Popen(["sleep", "600"]) as other:
        source = f"import os\ntry: os.kill({other.pid}, 0)\nexcept ProcessLookupError: print('none')"
        assert run(sandbox, source).stdout == "none\n"
        other.send_signal(signal.SIGTERM)


def test_writes_outside(sandbox, tmp_path):
    tmp_path.chmod(0o777)
    site = next(p for p in sys.path if p.endswith("site-packages"))
    paths = [f"{directory}/new" for directory in (tmp_path, "", "/usr", "/usr/lib", sys.base_prefix, site, "/dev")]
    source = f"""
        for path in {paths!r}:
            try: open(path, "w"); print("wrote", path)
            except OSError: print("refused")
        open("/dev/null", "w").write("x")
        """
    result = run(sandbox, source)
    assert (result.status, set(result.stdout.split())) == (0, {"refused"})
    assert not any(Path(path).exists() for path in paths)


def test_mounts_and_makes_namespaces(sandbox):
    source = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.unshare(0x10000000), libc.mount(b"none", b"/box", b"tmpfs", 0, None), libc.chroot(b"/box"))
        print(libc.setuid(0), os.getuid())
        """
    assert run(sandbox, source).stdout == "-1 -1 -1\n-1 65534\n"


@pytest.mark.parametrize("stream", [1, 2])
def test_prints_gigabytes(sandbox, stream):
    result = run(sandbox, f"import os\nwhile True: os.write({stream}, bytes(1 << 20))", output_kb=64)
    assert result.ending == "output"
    assert len(result.stdout) + len(result.stderr) == 64 << 10


def test_traps_signals(sandbox):
    source = """
        import signal, resource
        for number in range(1, 65):
            try: signal.signal(number, lambda *_: None)
            except (OSError, ValueError): pass
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        try: resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
        except (OSError, ValueError): print("refused", flush=True)
        while True: pass
        """
    result = run(sandbox, source, seconds=1)
    assert (result.ending, result.stdout) == ("time", "refused\n")


def test_sleeps(sandbox):
    assert run(sandbox, "import time\nwhile True: time.sleep(1000)", seconds=0.1).ending == "time"


def test_stops_itself(sandbox):
    assert run(sandbox, "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", seconds=0.1).ending == "time"


def test_daemonises(sandbox):
    source = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for stream in range(3): os.close(stream)
                while True: time.sleep(1)
            os._exit(0)
        print("gone")
        """
    result = run(sandbox, source)
    assert (result.ending, result.status, result.stdout) == ("ended", 0, "gone\n")


def test_daemon_that_computes(sandbox):
    source = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            while True: pass
        time.sleep(1000)
        """
    assert run(sandbox, source, seconds=1).ending == "time"


def test_descriptors_of_the_server(sandbox):
    source = """
        import os
        for number in range(3, 256):
            try: os.write(number, b"S0\\n"); print("open", number)
            except OSError: pass
        """
    assert run(sandbox, source).stdout == ""
