"""What a forked child does: take the request, be confined, call the function, write the answer, end.

The boundary where a candidate's exceptions become data. Nothing here returns to the warm process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from verifier.sandbox import confine, kernel, wire
from verifier.sandbox.confine import Confinement
from verifier.sandbox.limits import Limits

MAX_PASSED = 4
"""Descriptors that a client may pass to a job."""
passed: tuple[int, ...] = ()
"""Descriptors that the client passed to this job, in its child."""
_NO_ANSWER = 70
_FRAMES = 12
_MAX_ERROR = 6000


@dataclass(frozen=True, slots=True)
class Ends:
    """Descriptors of one job: the request to read, the answer, output and ready notes to write, and what the client
    passes on to the job itself."""

    request: int
    answer: int
    output: int
    ready: int
    passed: tuple[int, ...] = ()


def run(ends: Ends, how: Confinement | None, uid: int, environ: Mapping[str, str], mapped: int) -> NoReturn:
    """Be the child of one job.

    `how` is None for a trusted job, which is limited but not confined. `mapped` is the address space that the
    child starts with, bytes.
    """
    try:
        _serve(ends, how, uid, environ, mapped)
    finally:
        os._exit(_NO_ANSWER)


def nothing(payload: Any, blobs: dict[str, bytes], workdir: Path) -> tuple[Any, dict[str, bytes]]:
    """The empty job: shows whether jobs can be confined, and what that costs."""
    return None, {}


def _serve(ends: Ends, how: Confinement | None, uid: int, environ: Mapping[str, str], mapped: int) -> None:
    global passed
    try:
        _own_descriptors(ends)
        passed = ends.passed
        header, blobs = wire.unpack(_read_all(ends.request))
        limits = Limits(**header["limits"])
        folder = Path(header["folder"]) if header["folder"] else None
        confine.limit(limits, mapped)
        workdir, gaps = _enter(how, limits, folder, uid)
        _own_environment(workdir, environ)
    except (OSError, ValueError) as error:
        _note(ends.ready, {"error": f"{type(error).__name__}: {error}"})
        return
    _note(ends.ready, {"gaps": gaps})
    answer = _call(header["job"], header["payload"], blobs, workdir, limits.result_bytes)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    for piece in answer:
        _write_all(ends.answer, piece)
    os._exit(0)


def _own_descriptors(ends: Ends) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    nothing = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((nothing, 0), (ends.output, 1), (ends.output, 2)):
        os.dup2(source, target)
    kernel.close_all_but({0, 1, 2, ends.request, ends.answer, ends.ready, *ends.passed})
    faulthandler.enable(2, all_threads=False)


def _enter(how: Confinement | None, limits: Limits, folder: Path | None, uid: int) -> tuple[Path, list[str]]:
    if how is not None:
        return confine.confine(how, limits, folder, uid)
    if folder is None:
        raise OSError("no work folder was given")
    os.chdir(folder)
    return folder, []


def _own_environment(workdir: Path, environ: Mapping[str, str]) -> None:
    """Replace the environment: every folder that a library writes to lies in the work folder."""
    home = str(workdir)
    os.environ.clear()
    os.environ.update(
        {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "USER": "job",
            "HOME": home,
            "TMPDIR": home,
            "XDG_CACHE_HOME": f"{home}/.cache",
            "TRITON_HOME": home,
            "TRITON_CACHE_DIR": f"{home}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor",
            "PYTHONDONTWRITEBYTECODE": "1",
            **environ,
        }
    )
    tempfile.tempdir = None


def _call(job: str, payload: Any, blobs: dict[str, bytes], workdir: Path, most: int) -> list[bytes]:
    """The answer as bytes: the function's value, or what went wrong in it."""
    try:
        value, out = _function(job)(payload, blobs, workdir)
        pieces = list(wire.pack({"outcome": "ok", "value": value, "error": ""}, out))
        size = sum(map(len, pieces))
        if size > most:
            raise ValueError(f"the answer has {size} bytes, {most} allowed")
        return pieces
    except BaseException as error:  # noqa: BLE001  the sandbox boundary: a failing candidate is data
        return _failure("memory" if is_allocation_failure(error) else "error", error)


def _function(job: str) -> Callable[..., tuple[Any, dict[str, bytes]]]:
    module, _, name = job.partition(":")
    function: Callable[..., tuple[Any, dict[str, bytes]]] = getattr(importlib.import_module(module), name)
    return function


def _failure(outcome: str, error: BaseException) -> list[bytes]:
    try:
        text = describe(error)
    except BaseException:  # noqa: BLE001  the exception is the candidate's, and so are its methods
        text = "an exception that cannot be printed"
    return list(wire.pack({"outcome": outcome, "value": None, "error": text}, {}))


def describe(error: BaseException) -> str:
    """`Type: message`, then the last frames of the traceback without this module's own; at most 6 kB."""
    own = {__file__, importlib.__file__}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in own]
    message = "".join(traceback.format_exception_only(error)).strip()[-_MAX_ERROR // 2 :]
    head = message if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}"[: _MAX_ERROR // 2]
    return f"{head}\n{''.join(traceback.format_list(frames[-_FRAMES:]))[-_MAX_ERROR // 2 :]}".rstrip()


def is_allocation_failure(error: BaseException | None) -> bool:
    """Whether host memory was lacking, as Python or torch says it."""
    return isinstance(error, MemoryError) or (type(error) is RuntimeError and "can't allocate memory" in str(error))


def _note(descriptor: int, note: Mapping[str, Any]) -> None:
    _write_all(descriptor, json.dumps(note).encode())
    os.close(descriptor)


def _read_all(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
