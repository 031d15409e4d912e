"""Read what one job sends, with caps and a deadline. The job may flood, stall, lie or vanish."""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from dataclasses import dataclass, field
from typing import Any

from verifier.errors import SandboxError
from verifier.sandbox import wire
from verifier.sandbox.limits import Limits

OUTPUT_TAIL = 8 << 10
MAX_OUTPUT = 64 << 20
"""Bytes of stdout and stderr after which a job is ended."""
_CHUNK = 1 << 20
_MAX_NOTE = 1 << 16
_READY_SECONDS = 120.0
_END_SECONDS = 30.0


class ServerStuck(SandboxError):
    """The warm process does not do what it is told; only its end helps."""


class ServerEnded(SandboxError):
    """The warm process is gone."""


@dataclass(slots=True)
class Collected:
    """What came from one job until it had ended."""

    ready: bytearray = field(default_factory=bytearray)
    answer: bytearray = field(default_factory=bytearray)
    output: bytearray = field(default_factory=bytearray)
    output_bytes: int = 0
    stopped: str = ""
    """Why the client had it killed: empty, `timeout`, `asked`, `answer` or `output` (too large)."""
    report: dict[str, Any] = field(default_factory=dict)
    """The warm process's report on how it ended."""


class Collector:
    """Reads the pipes of one job. Arguments are descriptors; the caller closes them."""

    def __init__(
        self, *, ready: int, answer: int, output: int, channel: int, limits: Limits, until: int | None = None
    ) -> None:
        """`until`: when there is something to read, the job is ended."""
        self._sinks = {ready: self._take_ready, answer: self._take_answer, output: self._take_output}
        self._ready, self._channel, self._limits = ready, channel, limits
        self._poll = select.poll()
        for descriptor in (*self._sinks, channel):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        self._until = until
        if until is not None:
            self._poll.register(until, select.POLLIN)
        self._deadline = time.monotonic() + _READY_SECONDS
        self._got = Collected()

    def collect(self) -> Collected:
        """Wait for the end of the job; ServerEnded when the server dies, ServerStuck when it stalls."""
        while not self._got.report:
            left = self._deadline - time.monotonic()
            if left <= 0:
                self._expire()
            for descriptor, _ in self._poll.poll(max(0.0, left) * 1000):
                if descriptor == self._channel:
                    self._take_report()
                elif descriptor == self._until:
                    self._poll.unregister(descriptor)
                    self._stop("asked")
                else:
                    self._pull(descriptor)
        for descriptor in list(self._sinks):
            while self._pull(descriptor):
                pass
        return self._got

    def _expire(self) -> None:
        if self._got.stopped:
            raise ServerStuck("a job could not be ended")
        if self._ready in self._sinks:
            raise ServerStuck("a job could not be started in time")
        self._stop("timeout")

    def _stop(self, why: str) -> None:
        self._got.stopped = self._got.stopped or why
        self._deadline = time.monotonic() + _END_SECONDS
        for descriptor in list(self._sinks):
            self._forget(descriptor)
        with contextlib.suppress(OSError):  # it may have ended by itself: the report is under way
            os.write(self._channel, b"end")

    def _pull(self, descriptor: int) -> bool:
        """Read once; False when nothing is left or the reader has lost interest."""
        if descriptor not in self._sinks:
            return False
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._sinks[descriptor](data)
        else:
            self._forget(descriptor)
        return bool(data)

    def _forget(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._sinks[descriptor]
        if descriptor == self._ready and not self._got.stopped:
            self._deadline = time.monotonic() + self._limits.wall_seconds

    def _take_ready(self, data: bytes) -> None:
        self._got.ready += data[:_MAX_NOTE]

    def _take_answer(self, data: bytes) -> None:
        self._got.answer += data
        if len(self._got.answer) > self._limits.result_bytes + wire.MAX_HEADER:
            self._stop("answer")

    def _take_output(self, data: bytes) -> None:
        self._got.output = (self._got.output + data)[-OUTPUT_TAIL:]
        self._got.output_bytes += len(data)
        if self._got.output_bytes > MAX_OUTPUT:
            self._stop("output")

    def _take_report(self) -> None:
        try:
            data = os.read(self._channel, _MAX_NOTE)
        except ConnectionResetError:
            data = b""
        if not data:
            raise ServerEnded("the warm process ended while a job was running")
        self._got.report = json.loads(data)
