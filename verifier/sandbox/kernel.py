"""Linux calls that Python's standard library lacks, through ctypes. They raise OSError as module `os` does.

System call numbers are those of x86-64; `NATIVE` says whether this process may use them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

NATIVE = sys.platform == "linux" and platform.machine() == "x86_64"

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_PIVOT_ROOT, _CAPSET, _UNSHARE, _SETNS, _CLOSE_RANGE, _MOUNT_SETATTR = 155, 126, 272, 308, 436, 442
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_READ_ONLY = 1 | 2 | 4  # read-only, no set-uid, no devices
_CAP_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: object) -> int:
    """Make system call `number`; raises OSError (ENOSYS where the numbers do not apply)."""
    if not NATIVE:
        raise OSError(38, "system call numbers of this machine are not known")
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *words)))


def prctl(option: int, value: int = 0) -> None:
    word = ctypes.c_ulong
    _checked(int(_libc.prctl(option, word(value), word(0), word(0), word(0))))


def unshare(flags: int) -> None:
    syscall(_UNSHARE, flags)


def enter_namespace(descriptor: int, kind: int) -> None:
    syscall(_SETNS, descriptor, kind)


def mount(source: str, target: Path | str, kind: str, flags: int, data: str = "") -> None:
    encoded = [text.encode() for text in (source, str(target), kind)]
    _checked(int(_libc.mount(*encoded, ctypes.c_ulong(flags), data.encode() or None)))


def make_read_only(target: Path | str) -> None:
    """Make every mount at and below `target` read-only, without set-uid files and devices (Linux 5.12)."""
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_READ_ONLY, 0, 0, 0)
    syscall(_MOUNT_SETATTR, -100, str(target).encode(), _AT_RECURSIVE, attributes, len(attributes))


def change_root(root: Path | str) -> None:
    """Make mount point `root` the root of this mount namespace and detach the old one."""
    os.chdir(root)
    syscall(_PIVOT_ROOT, b".", b".")
    _checked(int(_libc.umount2(b".", MNT_DETACH)))
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up every capability, also for programs executed later."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break  # past the last one that this kernel knows, or no right to drop: capset below decides
    syscall(_CAPSET, struct.pack("Ii", _CAP_VERSION_3, 0), struct.pack("6I", 0, 0, 0, 0, 0, 0))


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor of this process except those in `keep`."""
    low = 0
    for descriptor in [*sorted(keep), 1 << 30]:
        if descriptor > low:
            _close_range(low, descriptor - 1)
        low = descriptor + 1


def _close_range(low: int, high: int) -> None:
    try:
        syscall(_CLOSE_RANGE, low, high, 0)
    except OSError:
        os.closerange(low, min(high + 1, os.sysconf("SC_OPEN_MAX")))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
