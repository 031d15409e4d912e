"""The journal: an append-only JSONL file, the source of truth of a run.

One writer at a time (an exclusive `flock` on the file). Each line is one event with a sequence number and the
run's wall seconds. A line is complete or it does not exist: a torn last line (power loss, kill -9) is cut off
when the file is opened, and a line that could not be written whole (full disk) is cut off at once and raises
StorageError. A line that is broken anywhere else is damage, not a tear, and is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from verifier.errors import StorageError

Event = dict[str, Any]


def read_events(path: Path) -> tuple[list[Event], int]:
    """The complete events of the file and the bytes they take, without a lock. Raises StorageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", next_step="check the run folder") from error
    events: list[Event] = []
    size = 0
    lines = data.split(b"\n")
    for index, line in enumerate(lines[:-1]):
        event = _decode(line, len(events))
        if event is None and index == len(lines) - 2 and not lines[-1]:
            break
        if event is None:
            raise StorageError(
                f"{path}:{index + 1}: the journal is damaged",
                next_step="restore the run folder from a copy, or start a new run",
            )
        events.append(event)
        size += len(line) + 1
    return events, size


def _decode(line: bytes, seq: int) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and event.get("seq") == seq and "t" in event else None


class Journal:
    """The one writer of a run's journal. `events` are those that were there when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _failed(path, error) from error
        try:
            self._lock()
            self.events, self._size = read_events(path)
            os.ftruncate(self._fd, self._size)
        except BaseException:
            os.close(self._fd)
            raise
        self._seq = len(self.events)

    def append(self, event: Event, *, wall: float, sync: bool = True) -> Event:
        """Writes `event` as the next line and returns it with `seq` and `wall`. `sync` waits for the disk.

        Raises StorageError; the file is then as it was before.
        """
        full = {"seq": self._seq, "wall": round(wall, 4), **event}
        line = json.dumps(full, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            self._write(line)
            if sync:
                os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise _failed(self.path, error) from error
        self._size += len(line)
        self._seq += 1
        return full

    def close(self) -> None:
        """Releases the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"another process is writing {self.path}", next_step="wait until it ends, or stop it"
            ) from None

    def _write(self, line: bytes) -> None:
        done = 0
        while done < len(line):
            done += os.pwrite(self._fd, line[done:], self._size + done)


def _failed(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written: {error.strerror}",
        next_step=f"free space or fix the permissions, then: warpsmith resume {path.parent}",
    )
