"""The host: nobody can block it, and what it started ends with its asker or with its owner."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.warm_host import Host, alive, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the warm host is for Linux")

SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
FAMILY = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
own_session = subprocess.Popen(["sleep", "61"], start_new_session=True)
orphan = subprocess.check_output(["sh", "-c", "setsid sleep 62 >/dev/null 2>&1 & echo $!"], text=True)
while os.getsid(int(orphan)) == os.getsid(0):  # until then it would be killed with this group
    time.sleep(0.01)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, own_session.pid, int(orphan), grandchild.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path / "host")
    yield host
    host.close()


def pids(process: subprocess.Popen) -> list[int]:
    return list(map(int, process.stdout.readline().split()))


def test_kill_9_of_the_asker_kills_the_fork_and_its_group(host):
    process = host.start("-c", FAMILY)
    fork, child, own_session, orphan, grandchild = pids(process)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert eventually(lambda: not any(map(alive, (fork, child, grandchild))))
    assert alive(own_session) and alive(orphan), "another session is not the asker's, as with any interpreter"
    host.close()
    assert not alive(own_session) and not alive(orphan)


def test_the_end_of_the_owner_ends_everything(tmp_path):
    """A real owner, killed with SIGKILL: the host, forks, grandchildren and orphans in sessions of their own go."""
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\nfrom tests.support.warm_host import Host\n"
            "host = Host(Path(sys.argv[1]))\n"
            "process = host.start('-c', sys.argv[2])\n"
            "print(host.process.pid, process.stdout.readline(), flush=True)\ntime.sleep(60)",
            str(tmp_path / "host"),
            FAMILY,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    below = pids(owner)
    assert len(below) == 6 and all(map(alive, below))
    owner.kill()
    owner.wait(10)
    owner.stdout.close()
    assert eventually(lambda: not any(map(alive, below))), [pid for pid in below if alive(pid)]


def test_sigterm_ends_the_host_and_everything(host):
    below = pids(host.start("-c", FAMILY))
    host.process.terminate()
    assert host.process.wait(10) == 0
    assert not any(map(alive, below))


def test_kill_9_of_the_host_ends_its_forks_and_their_askers(host):
    process = host.start("-c", SLEEP)
    (fork,) = pids(process)
    host.process.kill()
    assert process.wait(10) == 1
    assert eventually(lambda: not alive(fork))


def test_an_interrupt_is_not_the_hosts(host):
    host.process.send_signal(signal.SIGINT)
    assert host.run("-c", "print(1)").stdout == "1\n"


def test_a_client_that_says_nothing_or_half_a_request_blocks_nobody(host):
    request = json.dumps({"args": ["-c", "print(1)"], "env": {}, "cwd": "/", "fds": []}).encode()
    clients = []
    for start in (b"", b"\0\0", len(request).to_bytes(8, "big") + request[:20]):
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(str(host.socket))
        clients[-1].sendall(start)
    # Reading from one of them would wait for ever: nobody writes, nobody closes.
    assert host.run("-c", "print(1)").stdout == "1\n"
    for client in clients:
        client.close()
    assert host.run("-c", "print(2)").stdout == "2\n"


def test_a_request_in_single_bytes_arrives(host):
    request = {"args": ["-c", "raise SystemExit(5)"], "env": dict(os.environ), "cwd": "/", "fds": []}
    request |= {"unbuffered": False, "umask": 0o22, "ignored": [], "open_files": [256, 256]}
    text = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(host.socket))
        for byte in len(text).to_bytes(8, "big") + text:
            client.send(bytes([byte]))
        client.settimeout(10)
        assert client.recv(1) == b"+"
        assert client.recv(2, socket.MSG_WAITALL) == bytes([0, 5])


@pytest.mark.parametrize(
    "nonsense", [b"\0\0\0\0\0\0\0\4null", b"\0\0\0\0\0\0\0\2{}", b"\0\0\0\0\0\0\0\1{", b"GET / HTTP"]
)
def test_nonsense_is_refused(host, nonsense):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(host.socket))
        client.sendall(nonsense)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(10)
        assert client.recv(1) == b""
    assert host.run("-c", "print(1)").stdout == "1\n"


def test_a_signal_number_that_does_not_exist_harms_nobody(host):
    process = host.start("-c", SLEEP)
    (fork,) = pids(process)
    request = json.dumps(
        {"args": ["-c", "import time; time.sleep(1)"], "env": dict(os.environ), "cwd": "/", "fds": []}
        | {"unbuffered": False, "umask": 0o22, "ignored": [], "open_files": [256, 256]}
    ).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(host.socket))
        client.sendall(len(request).to_bytes(8, "big") + request)
        assert client.recv(1) == b"+"
        client.sendall(bytes([255, 0, 200]))
        client.settimeout(10)
        assert client.recv(2, socket.MSG_WAITALL) == bytes([0, 0])
    assert alive(fork)
    process.kill()
    process.wait(10)


def test_many_at_once_and_askers_that_die_at_any_moment(host):
    """The end of a fork and the death of its asker, in either order and in one batch, leave the host in order."""
    for delay in (0.0, 0.0, 0.01, 0.03, 0.05, 0.08):
        doomed = [host.start("-c", "import time; time.sleep(0.02)") for _ in range(8)]
        time.sleep(delay)
        for process in doomed:
            process.kill()
        for process in doomed:
            process.wait(10)
            process.stdout.close()
    together = [host.start("-c", f"print({n})") for n in range(30)]
    assert [process.communicate(timeout=30)[0] for process in together] == [f"{n}\n" for n in range(30)]
    assert {process.returncode for process in together} == {0}
    held = f"/proc/{host.process.pid}/fd"
    assert eventually(lambda: len(os.listdir(held)) < 12), os.listdir(held)
    assert host.process.poll() is None
