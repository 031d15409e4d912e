"""What a traced file can see of the process that traces it and an honest file does not depend on.

Disguise 0 is what every plan is made in. A second trace wears another one: other names of file, module, folder, user
and host, another distance between tensors, another stream, device, clock and figures of memory, other made-up times.
`twice.py` compares both plans. What an honest file may take its random numbers from is drawn anew for every trace:
addresses, the process id, the caller's seed.

What stays the same in all: that tensors are fake and that the recorder is there, the sandbox, and what decides an
honest program (name, limits and capability of the device, alignment).
"""

from __future__ import annotations

import functools
import os
import platform
import random
import socket
import string
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "candidate"
"""Module and file of a candidate. Others have as many letters, so that compiled code stays comparable byte by byte."""
_ADDRESSES = range(0x7A00_0000_0000, 0x7F00_0000_0000, 1 << 21)
"""Improbable numbers, so that an integer that points into the fake address space is known to be an address."""
_chance = random.SystemRandom()
_LETTERS = string.ascii_lowercase
_CLOCKS = ("time", "monotonic", "perf_counter")


@dataclass(frozen=True, slots=True)
class Disguise:
    """One appearance. What disguise 0 leaves empty stays as the process has it."""

    name: str = NAME
    gap: int = 1 << 20
    """Bytes between two storages."""
    stream: int = 0
    """Handle of the current stream."""
    milliseconds: float = 1.0
    """What every event and benchmark says that something took."""
    used: int = 0
    """Device memory that is taken, bytes."""
    uuid: str = ""
    other: str = ""
    """Stem of the names of folder, user and host."""
    later: int = 0
    """Seconds by which all clocks are ahead."""
    first: int = field(default_factory=lambda: _chance.choice(_ADDRESSES), compare=False)
    """Start of the fake address space."""
    pid: int = field(default_factory=lambda: _chance.randrange(1000, 60_000), compare=False)
    seed: int = field(default_factory=lambda: _chance.getrandbits(31), compare=False)
    """What the default random generators say that the caller seeded them with."""

    @classmethod
    def of(cls, number: int) -> Disguise:
        """The disguise of a number. Equal for equal numbers, but for what is drawn anew."""
        if number == 0:
            return cls()
        draw = random.Random(number)
        word = functools.partial(draw.choices, _LETTERS)
        return cls(
            name="".join(word(k=len(NAME))),
            gap=draw.randrange(512, 8192, 512),
            stream=draw.randrange(0x5500_0000_0000, 0x5600_0000_0000, 16),
            milliseconds=draw.uniform(0.01, 0.9),
            used=draw.randrange(1 << 26, 1 << 29, 1 << 21),
            uuid=f"{draw.getrandbits(128):032x}",
            other="".join(word(k=8)),
            later=draw.randrange(1 << 10, 1 << 26),
        )

    def wear(self, workdir: Path) -> Path:
        """Puts the process-wide part on, for good; returns the folder that the file runs in, the current one."""
        _reseed_numpy()
        _set(os, getpid=lambda: self.pid, getppid=lambda: self.pid - 7)
        _kept.append([object() for _ in range(self.pid // 16)])  # so that new objects have other addresses
        if not self.other:
            os.chdir(workdir)
            return workdir
        folder = workdir / self.other
        folder.mkdir()
        os.chdir(folder)
        self._rename(workdir, folder)
        for clock in _CLOCKS:
            _set(time, **{clock: _ahead(getattr(time, clock), self.later),
                          f"{clock}_ns": _ahead(getattr(time, f"{clock}_ns"), self.later * 10**9)})  # fmt: skip
        return folder

    def _rename(self, workdir: Path, folder: Path) -> None:
        for variable, value in os.environ.items():
            if value == str(workdir) or value.startswith(f"{workdir}/"):
                os.environ[variable] = f"{folder}{value[len(str(workdir)) :]}"
        os.environ["USER"] = os.environ["HOSTNAME"] = self.other
        said = os.uname()
        here = os.uname_result((said.sysname, self.other, said.release, said.version, said.machine))
        _set(os, uname=lambda: here)
        _set(socket, gethostname=lambda: self.other, getfqdn=lambda *_name: self.other)
        _set(platform, node=lambda: self.other)
        _kept.append(sys.modules["__main__"])
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__file__ = str(folder / f"{self.other}.py")
        sys.argv[:] = sys.orig_argv[:] = [main.__file__]


_kept: list[Any] = []


def _reseed_numpy() -> None:
    """A fresh process draws its own seed; a forked one would repeat its parent's numbers."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _ahead(clock: Callable[[], Any], seconds: int) -> Callable[[], Any]:
    return lambda: clock() + seconds


def _set(owner: object, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(owner, name, value)
