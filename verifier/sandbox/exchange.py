"""One request to the warm process and all that comes back, over descriptors made for this job alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verifier.errors import SandboxError
from verifier.sandbox import wire
from verifier.sandbox.collect import Collected, Collector, ServerEnded
from verifier.sandbox.limits import Limits


@dataclass(frozen=True, slots=True)
class Request:
    """What to run, on what, within which limits."""

    job: str
    payload: Any
    blobs: Mapping[str, bytes]
    limits: Limits
    confined: bool
    passed: tuple[int, ...] = ()
    """Descriptors for the job itself."""
    until: int | None = None
    """A descriptor that ends the job when there is something to read."""


def exchange(control: socket.socket, request: Request, *, private_folder: bool) -> tuple[Collected, float]:
    """Send one request and collect all that comes back; returns it with the seconds taken.

    `private_folder` says that confined jobs get a work folder of their own from the server. Raises
    SandboxError when the server is gone or cannot fork.
    """
    begin = time.monotonic()
    with ExitStack() as ours:
        folder = "" if request.confined and private_folder else str(ours.enter_context(_temporary_folder()))
        with ExitStack() as theirs:
            asked = theirs.enter_context(_request_file(request, folder))
            answer, answer_end = _pipe(ours, theirs)
            output, output_end = _pipe(ours, theirs)
            ready, ready_end = _pipe(ours, theirs)
            channel, channel_end = socket.socketpair()
            ours.enter_context(channel)
            theirs.enter_context(channel_end)
            _send(control, request, [asked, answer_end, output_end, ready_end, channel_end.fileno(), *request.passed])
        collector = Collector(
            ready=ready, answer=answer, output=output, channel=channel.fileno(), until=request.until,
            limits=request.limits,
        )  # fmt: skip
        got = collector.collect()
    if "failed" in got.report:
        raise SandboxError(str(got.report["failed"]))
    return got, time.monotonic() - begin


def gaps_of(got: Collected) -> list[str]:
    """The child's note, written by our code before any of the candidate's ran."""
    if not got.ready:
        raise SandboxError(f"a job ended before it was confined: {got.output.decode(errors='replace')}")
    note = json.loads(got.ready)
    if "error" in note:
        raise SandboxError(f"a job could not be confined: {note['error']}")
    return list(note["gaps"])


def _send(control: socket.socket, request: Request, ends: list[int]) -> None:
    limits = request.limits
    note = {
        "confined": request.confined,
        "memory_bytes": limits.memory_bytes,
        "cpu_seconds": limits.cpu_seconds,
    }
    try:
        socket.send_fds(control, [json.dumps(note).encode()], ends)
    except OSError as error:
        raise ServerEnded(f"the warm process has ended: {error}") from error


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    ours.callback(os.close, read_end)
    theirs.callback(os.close, write_end)
    return read_end, write_end


@contextmanager
def _request_file(request: Request, folder: str) -> Iterator[int]:
    """Descriptor of an unnamed file in memory that holds the request."""
    header = {
        "job": request.job,
        "payload": request.payload,
        "folder": folder,
        "limits": asdict(request.limits),
    }
    descriptor = os.memfd_create("request")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.writelines(wire.pack(header, request.blobs))
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards, whatever a job has put there."""
    folder = Path(tempfile.mkdtemp(prefix="warpsmith-job-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
