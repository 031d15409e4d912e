"""Fewer page table entries to copy: with huge pages a fork of a process with torch costs about half."""

from __future__ import annotations

import contextlib
from pathlib import Path

from verifier.sandbox import kernel

_HUGE = 2 << 20
_MADVISE, _HUGEPAGE, _COLLAPSE = 28, 14, 25
_ANONYMOUS = 5  # fields of a line in /proc/self/maps that names no file


def gather() -> None:
    """Gather this process's private memory into huge pages (Linux 6.1); no effect where that is refused."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if fields[1] == "rw-p" and (len(fields) == _ANONYMOUS or fields[5] == "[heap]"):
            first, last = (int(address, 16) for address in fields[0].split("-"))
            for address in range(-(-first // _HUGE) * _HUGE, last - _HUGE + 1, _HUGE):
                _collapse(address)


def _collapse(address: int) -> None:
    with contextlib.suppress(OSError):
        kernel.syscall(_MADVISE, address, _HUGE, _HUGEPAGE)
        kernel.syscall(_MADVISE, address, _HUGE, _COLLAPSE)
