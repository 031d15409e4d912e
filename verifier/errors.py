"""Errors: whose fault it is decides the class, and the class decides the exit code.

    WarpsmithError
    |-- UsageError               exit 2: a wrong flag, an unknown name, a bad budget
    |   `-- ProblemError         a broken problem file: names the file, the line and what is missing
    `-- InfrastructureError      exit 3: our machinery or the machine failed, never the candidate
        |-- SandboxError         the worker could not be started or confined
        `-- StorageError         a run folder cannot be written (full disk, permissions)

A failing candidate raises none of these. It is data: a `Verdict` with a status (see `verdict.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

_NAMED = re.compile(r"[\w. ]*(?:Error|error|Exception)\b")


def first_line(error: BaseException) -> str:
    """What an exception says first, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_words(log: str) -> str:
    """Why a process ended, of what it wrote: the last line that begins with the name of an error, else the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if _NAMED.match(line)]
    return (named or lines or ["it ended without a message"])[-1][:500]


class WarpsmithError(Exception):
    """Base of all errors that the project raises. `next_step` tells the user what to do, in one sentence."""

    exit_code = 3

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the error as it is, whatever its constructor takes: it may come from another process."""
        return type(self)._made, (self.args, self.__dict__)

    @classmethod
    def _made(cls, args: tuple[Any, ...], attributes: dict[str, Any]) -> Self:
        error = cls.__new__(cls, *args)
        error.__dict__.update(attributes)
        return error


class UsageError(WarpsmithError):
    """What the user asked for cannot be done as asked."""

    exit_code = 2


class ProblemError(UsageError):
    """A problem file that cannot be used. `file` and `line` (1-based, None when unknown) say where."""

    def __init__(self, message: str, *, file: Path | str, line: int | None = None, next_step: str = "") -> None:
        where = f"{file}:{line}" if line is not None else f"{file}"
        super().__init__(f"{where}: {message}", next_step=next_step)
        self.file = str(file)
        self.line = line


class InfrastructureError(WarpsmithError):
    """Our fault or the machine's. The attempt that met it is refunded."""


class SandboxError(InfrastructureError):
    """The confined worker could not be started, or broke its protocol without the candidate's help."""


class StorageError(InfrastructureError):
    """A run folder cannot be read or written."""
