"""Run untrusted programs where they reach neither files nor network nor processes of the machine.

| file | holds |
|---|---|
| `sandbox.py` | `Sandbox`: parallel slots, each one server process; what callers use |
| `program.py` | a program, its limits, and the result of running it |
| `box_client.py` | talks to one server process |
| `box_server.py` | the server process: one run after the other, each in a box of its own |
| `box.py` | the processes of a box, up to the program's start |
| `supervision.py` | watches a box from outside, and ends it at a limit |
| `namespaces.py` | the box's own view of files, network, users and processes |
| `syscall_filter.py` | system calls that a program has no use for |
| `process_tree.py` | what the processes of a box use |
| `libc.py` | system calls that Python's library lacks |

A box needs Linux 5.12 with user namespaces, and nothing installed. Its program sees Python and the system's libraries,
read-only, and one empty directory of its own in memory. The server's modules import Python's library alone.
"""
