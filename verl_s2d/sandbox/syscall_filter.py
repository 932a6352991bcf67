"""Refuse system calls that a program has no use for, and that could reach past its box (seccomp-BPF).

Namespaces already hide files, network and processes. The filter takes away what they do not cover: other families of
sockets (a virtual machine's vsock has no namespace), memory that no limit counts, and the kernel's rarely used
interfaces. SIGKILL is refused too, so that a program which dies of it was killed from outside.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from verl_s2d.sandbox import libc

_X86_64, _AARCH64 = 0xC000_003E, 0xC000_00B7
_ARCHITECTURES = {"x86_64": (0, _X86_64), "aarch64": (1, _AARCH64)}
"""Machine -> column of the tables below, and the kernel's number of the architecture."""

REFUSED = {
    # files and mounts
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431)},
    **{"fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262)},
    **{"quotactl": (179, 60), "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225)},
    # namespaces and other processes
    **{"unshare": (272, 97), "setns": (308, 268), "ptrace": (101, 117), "pidfd_getfd": (438, 438)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440)},
    # memory that is in no process's address space
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "mq_open": (240, 180)},
    **{"shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "semget": (64, 190)},
    # interfaces of the kernel
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "personality": (135, 92)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "syslog": (103, 116)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "acct": (163, 89)},
    **{"settimeofday": (170, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266)},
    **{"sched_setscheduler": (144, 119), "sched_setattr": (314, 274)},
}
"""System call -> its number on x86_64 and aarch64."""

_EQUAL, _DIFFERS, _HAS = "equal", "differs", "has"
_NEW_NAMESPACE = 0x7E02_0000
_AF_UNIX, _SIGKILL, _RLIMIT_CPU = 1, 9, 0
REFUSED_ARGUMENTS = {
    "socket": ((41, 198), [(0, _DIFFERS, _AF_UNIX)]),
    "socketpair": ((53, 199), [(0, _DIFFERS, _AF_UNIX)]),
    "clone": ((56, 220), [(0, _HAS, _NEW_NAMESPACE)]),
    "kill": ((62, 129), [(1, _EQUAL, _SIGKILL)]),
    "tkill": ((200, 130), [(1, _EQUAL, _SIGKILL)]),
    "tgkill": ((234, 131), [(2, _EQUAL, _SIGKILL)]),
    "rt_sigqueueinfo": ((129, 138), [(1, _EQUAL, _SIGKILL)]),
    "rt_tgsigqueueinfo": ((297, 240), [(2, _EQUAL, _SIGKILL)]),
    "pidfd_send_signal": ((424, 424), [(1, _EQUAL, _SIGKILL)]),
    # A limit of processor time ends with SIGKILL.
    "setrlimit": ((160, 164), [(0, _EQUAL, _RLIMIT_CPU)]),
    "prlimit64": ((302, 261), [(0, _DIFFERS, 0), (1, _EQUAL, _RLIMIT_CPU)]),
}
"""System call -> its numbers, and (argument, comparison, value) of each call that is refused."""
_CLONE3 = 435
"""Its flags are in memory, which a filter cannot read; libc falls back to clone where it does not exist."""

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_HAS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32 = 0x4000_0000
_MODE_FILTER = 2


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def pivot_root_number() -> int:
    """Return the number of the system call pivot_root. Raises OSError on an unknown kind of processor."""
    return REFUSED["pivot_root"][_architecture()[0]]


def install() -> None:
    """Refuse these system calls to this process and its children, for good. Raises OSError."""
    code = instructions()
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _FilterProgram(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p).value)
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_SECCOMP, _MODE_FILTER, ctypes.cast(ctypes.byref(program), ctypes.c_void_p))


def instructions() -> bytes:
    """Assemble the filter for this machine: eight bytes an instruction, as <linux/filter.h> has them."""
    column, architecture = _architecture()
    refuse = _instruction(_RETURN, _ERRNO | errno.EPERM)
    code = [
        _instruction(_LOAD, _ARCHITECTURE_AT),
        _instruction(_JUMP_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    if architecture == _X86_64:
        code += [_instruction(_JUMP_AT_LEAST, _X32, 0, 1), _instruction(_RETURN, _KILL_PROCESS)]
    code += [_instruction(_JUMP_EQUAL, _CLONE3, 0, 1), _instruction(_RETURN, _ERRNO | errno.ENOSYS)]
    for numbers in REFUSED.values():
        code += [_instruction(_JUMP_EQUAL, numbers[column], 0, 1), refuse]
    for numbers, refused in REFUSED_ARGUMENTS.values():
        tests = []
        for argument, comparison, value in refused:
            jump = _JUMP_HAS if comparison == _HAS else _JUMP_EQUAL
            to = (1, 0) if comparison == _DIFFERS else (0, 1)
            tests += [_instruction(_LOAD, _ARGUMENTS_AT + 8 * argument), _instruction(jump, value, *to), refuse]
        tests.append(_instruction(_RETURN, _ALLOW))
        code += [_instruction(_JUMP_EQUAL, numbers[column], 0, len(tests)), *tests]
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def _architecture() -> tuple[int, int]:
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter of system calls for {machine}")
    return _ARCHITECTURES[machine]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
