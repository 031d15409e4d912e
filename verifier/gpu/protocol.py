"""Messages between supervisor, judge and runner: frames of JSON and blobs and descriptors over an AF_UNIX socket.

A frame is that of `verifier.sandbox.wire`; its first byte carries the descriptors. Never pickle. What a runner says is
read with the caps of `FROM_RUNNER` and the strict model `Reply`: whoever owns the runner can lie within them and no
further. Every wait has a deadline by the receiver's own clock.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verifier.sandbox import wire

MAX_FDS = 8
_PREFIX = struct.Struct("<4sI")
_CHUNK = 1 << 20


class ProtocolError(ValueError):
    """The other side broke the protocol. One sentence."""


class Gone(Exception):
    """The other side closed its end."""


class Expired(Exception):
    """The deadline passed."""


@dataclass(frozen=True, slots=True)
class Caps:
    """What one message may carry, bytes and descriptors."""

    header: int
    blobs: int
    fds: int


FROM_RUNNER = Caps(header=64 << 10, blobs=0, fds=0)
FROM_JUDGE = Caps(header=32 << 20, blobs=2 << 30, fds=MAX_FDS)
FROM_SUPERVISOR = FROM_JUDGE
TO_SUPERVISOR = Caps(header=32 << 20, blobs=0, fds=0)


@dataclass(slots=True)
class Message:
    """One message. Whoever receives it owns the descriptors."""

    header: dict[str, Any]
    blobs: dict[str, bytes] = field(default_factory=dict)
    fds: list[int] = field(default_factory=list)


class Channel:
    """One end of a stream socket. `caps` bind what is received. Not safe from several threads."""

    def __init__(self, end: socket.socket, caps: Caps) -> None:
        self.socket, self._caps = end, caps
        end.setblocking(False)

    def send(
        self, header: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None, fds: Sequence[int] = (),
        *, seconds: float,
    ) -> None:  # fmt: skip
        """Sends one message, the descriptors stay open here. Raises Gone, Expired."""
        end = time.monotonic() + seconds
        pieces = wire.pack({**header, "fds": len(fds)}, blobs or {})
        first = memoryview(next(pieces))
        try:
            self._wait(select.POLLOUT, end)
            if fds:
                socket.send_fds(self.socket, [first[:1]], fds)
                first = first[1:]
            self._send(first, end)
            for piece in pieces:
                self._send(memoryview(piece), end)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone("the other side is gone") from None

    def receive(self, *, seconds: float = math.inf) -> Message:
        """The next message. Raises ProtocolError, Gone, Expired."""
        end = time.monotonic() + seconds
        fds: list[int] = []
        try:
            return self._receive(end, fds)
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, ConnectionResetError):
                raise Gone("the other side is gone") from None
            raise

    def pending(self) -> bool:
        """Whether the other side has said something that nobody read, or is gone."""
        return bool(_poll(self.socket, select.POLLIN, 0.0))

    def close(self) -> None:
        self.socket.close()

    def _send(self, data: memoryview, end: float) -> None:
        while data:
            try:
                data = data[self.socket.send(data[:_CHUNK]) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, end)

    def _receive(self, end: float, fds: list[int]) -> Message:
        self._wait(select.POLLIN, end)
        first = self._first(fds)
        prefix = first + self._exactly(_PREFIX.size - len(first), end)
        magic, length = _PREFIX.unpack(prefix)
        if magic != wire.MAGIC:
            raise ProtocolError("it does not start as a message does")
        if length > self._caps.header:
            raise ProtocolError(f"a header of {length} bytes, {self._caps.header} allowed")
        data = bytearray(prefix + self._exactly(length, end))
        try:
            header = wire.header(bytes(data[_PREFIX.size :]))
            size = wire.blob_bytes(header)
            if size > self._caps.blobs:
                raise ProtocolError(f"blobs of {size} bytes, {self._caps.blobs} allowed")
            data += self._exactly(size, end)
            header, blobs = wire.unpack(data)
        except wire.FrameError as wrong:
            raise ProtocolError(str(wrong)) from None
        if header.pop("fds", None) != len(fds):
            raise ProtocolError(f"{len(fds)} descriptors came with a message that names another number")
        return Message(header, blobs, fds)

    def _first(self, fds: list[int]) -> bytes:
        if not self._caps.fds:
            data = self.socket.recv(1)  # descriptors that come along are dropped by the kernel
        else:
            data, got, flags, _ = socket.recv_fds(self.socket, 1, self._caps.fds, socket.MSG_CMSG_CLOEXEC)
            fds += got
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("too many descriptors")
        if not data:
            raise Gone("the other side is gone")
        return data

    def _exactly(self, count: int, end: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                piece = self.socket.recv(min(count - len(data), _CHUNK))
            except BlockingIOError:
                self._wait(select.POLLIN, end)
                continue
            if not piece:
                raise Gone("the other side ended within a message")
            data += piece
        return bytes(data)

    def _wait(self, event: int, end: float) -> None:
        if not _poll(self.socket, event, max(0.0, end - time.monotonic())):
            raise Expired("the deadline passed")


def _poll(end: socket.socket, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(end, event)
    return bool(poll.poll(None if math.isinf(seconds) else math.ceil(seconds * 1000)))


# -- what a runner may answer ----------------------------------------------------------------------

FailureKind = Literal[
    "illegal-address", "device-assert", "launch-failed", "out-of-memory", "load-failed", "unsupported", "not-replayed",
    "plan-refused", "wrote-past", "unexpected", "raised", "build-failed", "no-model", "other-output",
]  # fmt: skip
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]


class Reply(BaseModel):
    """A runner's answer to one command."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    turn: Annotated[int, Field(ge=0, lt=1 << 53)]
    """Number of the command that it answers."""
    failure: FailureKind | None = None
    text: Annotated[str, Field(max_length=4000)] = ""
    line: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Line of the candidate's file, where its own Python failed."""
    lost: bool = False
    """Its context is lost: it ends now."""
    captured: bool | None = None
    """Whether the program became a CUDA graph."""
    seconds: Annotated[tuple[Seconds, ...], Field(max_length=4096)] = ()
    """Event times of a timed block, in the order of its calls."""
    untimed_seconds: Seconds = 0.0
    """What the runner knows to lie between the events."""
    starved: Annotated[int, Field(ge=0, le=4096)] = 0
    """Calls of the block that the device waited for."""
    clock_hz: Annotated[float, Field(gt=0, le=1e11, allow_inf_nan=False)] | None = None


def read_reply(header: object, turn: int) -> Reply:
    """The checked answer to command `turn`. Raises ProtocolError."""
    try:
        reply = Reply.model_validate_json(_json(header))
    except ValidationError as wrong:
        raise ProtocolError(f"an answer is malformed: {wrong.errors(include_url=False)[0]['msg']}") from None
    if reply.turn != turn:
        raise ProtocolError(f"an answer to command {reply.turn}, {turn} was asked")
    return reply


def _json(header: object) -> str:
    try:
        return json.dumps(header, allow_nan=False)
    except ValueError:
        raise ProtocolError("an answer holds NaN or infinity") from None
