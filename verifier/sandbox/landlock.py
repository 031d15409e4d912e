"""Landlock: an unprivileged process limits itself to named folders (Linux 5.13 and later).

Rules name open inodes, not paths, and hold below a folder. Rights that are not granted are refused with
EACCES. Landlock does not govern stat, chmod, chown or extended attributes; the system call filter refuses the
changes (`seccomp.py`).
Source of the constants: include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from verifier.sandbox import kernel

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_ALL_RIGHTS = (1 << 16) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_TCP = 0b11  # bind and connect
_SCOPES = 0b11  # abstract unix sockets and signals to processes outside

LIST = _READ_DIR
READ = _READ_FILE | _READ_DIR
RUN = READ | _EXECUTE
WRITE = _ALL_RIGHTS & ~_EXECUTE & ~_IOCTL_DEV
DEVICE = _READ_FILE | _WRITE_FILE
DEVICE_IOCTL = DEVICE | _IOCTL_DEV
REWRITE = DEVICE | _TRUNCATE


class Rule(NamedTuple):
    """`rights` on the file or folder `path`; a path that does not exist is left out."""

    path: str
    rights: int

    @classmethod
    def on(cls, path: Path, rights: int) -> Self:
        """The rule with only those rights that a file can have, when `path` is one."""
        return cls(str(path), rights if path.is_dir() else rights & _OF_FILES)


def version() -> int:
    """ABI version of this kernel, 0 when Landlock is missing or switched off."""
    try:
        return kernel.syscall(_CREATE, None, 0, 1)
    except OSError:
        return 0


def ruleset(rules: Iterable[Rule]) -> int:
    """Make a ruleset that handles all rights of this kernel and grants `rules`; returns its descriptor."""
    abi = version()
    handled = _handled_rights(abi)
    attributes = struct.pack("QQQ", handled, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    descriptor = kernel.syscall(_CREATE, attributes, size, 0)
    for rule in rules:
        _add(descriptor, rule, handled)
    return descriptor


def enforce(descriptor: int) -> None:
    """Put this thread and all that it starts under the ruleset, for good. Needs no_new_privs."""
    kernel.syscall(_RESTRICT, descriptor, 0)
    os.close(descriptor)


def _handled_rights(abi: int) -> int:
    missing = (_REFER if abi < 2 else 0) | (_TRUNCATE if abi < 3 else 0) | (_IOCTL_DEV if abi < 5 else 0)
    return _ALL_RIGHTS & ~missing


def _add(descriptor: int, rule: Rule, handled: int) -> None:
    try:
        target = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    kernel.syscall(_ADD, descriptor, 1, struct.pack("=Qi", rule.rights & handled, target), 0)
    os.close(target)
