"""Give a process its own view of the machine: users, processes, network, and a root directory that it cannot write.

In the box are /usr and its links, the interpreter's own directories, a few devices, and the program's directory, a file
system in memory. No /etc, no home, no /proc, and no network device.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from verl_s2d.sandbox import libc
from verl_s2d.sandbox.program import DIRECTORY
from verl_s2d.sandbox.syscall_filter import pivot_root_number

USER = 65534
"""The program's user and group in the box: nobody. Of a server that runs as root, also outside."""

_NEW = (
    libc.CLONE_NEWUSER
    | libc.CLONE_NEWNS
    | libc.CLONE_NEWPID
    | libc.CLONE_NEWNET
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
)
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_MOST_FILES = 4096
_NEW_ROOT = "/sys"
"""A directory that every machine has and no interpreter is in: the new root is mounted over it."""


def leave() -> None:
    """Leave the machine's namespaces; the caller's next child is the first process of the new ones. Raises OSError."""
    libc.unshare(_NEW)


def map_users(pid: int) -> None:
    """Give a process that has left the users of its box, from outside. Raises OSError.

    Root's box has two: root, which prepares it, and nobody, whose processes a limit can count.
    """
    users, groups = os.geteuid(), os.getegid()
    if users == 0:
        maps = {"uid_map": f"0 0 1\n{USER} {USER} 1\n", "gid_map": f"0 0 1\n{USER} {USER} 1\n"}
    else:
        maps = {"setgroups": "deny", "uid_map": f"{USER} {users} 1\n", "gid_map": f"{USER} {groups} 1\n"}
    for name, text in maps.items():
        Path(f"/proc/{pid}/{name}").write_text(text)


def change_root(disk_mb: int, visible: tuple[str, ...] = ()) -> None:
    """Change the caller's root directory to a new one in memory. Raises OSError.

    Args:
        disk_mb: size of the program's directory.
        visible: directories of the machine to show, read-only, besides the interpreter's.
    """
    libc.mount("none", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", _NEW_ROOT, "tmpfs", libc.MS_NOSUID, "size=1m,mode=755")
    for name in _SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            os.symlink(os.readlink(path), f"{_NEW_ROOT}/{name}")
        elif path.is_dir():
            _show(str(path))
    for path in shown_directories(visible):
        _show(path)
    os.mkdir(f"{_NEW_ROOT}/dev")
    for name in _DEVICES:
        device = f"{_NEW_ROOT}/dev/{name}"
        os.close(os.open(device, os.O_CREAT | os.O_WRONLY, 0o444))
        libc.mount(f"/dev/{name}", device, "", libc.MS_BIND)
        libc.restrict_mount(device, libc.MS_NOSUID | libc.MS_NOEXEC, recursive=False)
    box = f"{_NEW_ROOT}{DIRECTORY}"
    os.mkdir(box)
    flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    libc.mount("tmpfs", box, "tmpfs", flags, f"size={disk_mb}m,nr_inodes={_MOST_FILES},mode=700,uid={USER},gid={USER}")
    libc.restrict_mount(_NEW_ROOT, libc.MS_RDONLY, recursive=False)
    os.chdir(_NEW_ROOT)
    libc.pivot_root_here(pivot_root_number())


def shown_directories(visible: tuple[str, ...] = ()) -> list[str]:
    """List the directories outside /usr that Python needs, and further ones; none of them inside another."""
    paths = {os.path.realpath(path) for path in (sys.base_prefix, *libraries(), *visible)}
    # PYTHONPATH names the directories as they are, links included.
    paths |= {os.path.abspath(path) for path in libraries()}
    covered = ("/usr", *sorted(paths))
    return sorted(path for path in paths if not any(path != c and (path + "/").startswith(c + "/") for c in covered))


def libraries() -> list[str]:
    """List the directories of installed packages, which Python does not look for without its module site."""
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and os.path.isdir(path)]


def become_nobody() -> None:
    """Become the box's unprivileged user, without any capability. Raises OSError."""
    if os.geteuid() != USER:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    libc.drop_capabilities()


def _show(path: str) -> None:
    target = f"{_NEW_ROOT}{path}"
    os.makedirs(target, exist_ok=True)
    libc.mount(path, target, "", libc.MS_BIND | libc.MS_REC)
    libc.restrict_mount(target, libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV, recursive=True)
