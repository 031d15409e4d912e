"""Memory and CPU time of a job's processes, read from `/proc` by the warm process.

A process may end between two looks, and its name may be any bytes: nothing here raises for either, since the warm
process would end and take all its jobs along.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple

_KINDS = (b"RssAnon:", b"RssShmem:")
_TIMES = slice(11, 15)  # utime, stime, cutime, cstime, counted from the field after the name


def private_bytes(pid: int) -> int:
    """Anonymous and shared memory that `pid` has touched, bytes; 0 when it is gone or cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_KINDS))


def mapped_bytes() -> int:
    """Address space of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class Used(NamedTuple):
    """What the processes of a job have used together."""

    memory_bytes: int
    cpu_seconds: float


def used_by_family(pid: int, inherited: int) -> Used:
    """Memory and CPU time of `pid` and its descendants, with ended ones that were waited for.

    Each may share `inherited` bytes with another: these do not count.
    """
    family = _family(pid)
    memory = sum(max(0, private_bytes(member) - inherited) for member in family)
    return Used(memory, sum(map(_cpu_seconds, family)))


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[_TIMES])) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    members = [pid]
    for member in members:
        members += children(member)
    return members


def children(pid: int) -> set[int]:
    """Children of all threads of `pid`; those that have ended count until they are waited for."""
    tasks = f"/proc/{pid}/task"
    found: set[int] = set()
    try:
        threads = os.listdir(tasks)
    except OSError:
        return found  # the process ended meanwhile
    for thread in threads:
        try:
            found |= set(map(int, Path(tasks, thread, "children").read_bytes().split()))
        except OSError:
            continue  # the thread ended meanwhile
    return found
