"""The client of the sandbox: one warm server process that forks a confined child for each job.

    with Zygote(preload=["torch", "triton"]) as zygote:
        result = zygote.run("package.module:function", {"any": "JSON"}, {"name": b"bytes"})

In the child: `function(payload, blobs, workdir) -> (JSON value, {name: bytes})`. What the confinement covers
and what it does not: `confine.py`. Modelled on CPython's `multiprocessing.forkserver`, without pickle.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from verifier.errors import SandboxError, last_words
from verifier.sandbox.access import PROJECT_ROOT
from verifier.sandbox.collect import ServerEnded, ServerStuck
from verifier.sandbox.exchange import Request, exchange, gaps_of
from verifier.sandbox.limits import Limits
from verifier.sandbox.outcome import JobResult, judge

__all__ = ["JobResult", "Limits", "Zygote", "isolation_gaps"]

_START_SECONDS = 180.0
_CLOSE_SECONDS = 5.0
_MAX_NOTE = 1 << 16
_LOG_BYTES = 16_000
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(slots=True)
class _Server:
    """One running warm process and its own folder."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    log: IO[bytes]
    root: Path
    private_folder: bool = False
    gaps: tuple[str, ...] = ()

    def last_words(self) -> str:
        """How the process ended and what it said last."""
        try:
            how = f"exit code {self.process.wait(_CLOSE_SECONDS)}"
        except subprocess.TimeoutExpired:
            how = "it still runs"
        return how if self.log.closed else f"{how}: {tail(self.log)}"

    def end(self) -> None:
        self.control.close()
        try:
            self.process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.root, ignore_errors=True)


class Zygote:
    """A warm server process; `run` is blocking, thread-safe, and starts or restarts the server as needed."""

    def __init__(
        self,
        *,
        preload: Sequence[str],
        environ: Mapping[str, str] | None = None,
        paths: Sequence[Path] = (),
        without: Collection[str] = (),
        builds: bool = False,
        device: bool = False,
    ) -> None:
        """`preload`: modules that the server imports. `environ`: variables of the server and of each job,
        added to a clean environment. `paths`: import roots that jobs may read. `without`: layers to leave out
        (names in `confine.LAYERS`), for tests of older kernels. `builds`: jobs may build native code, and
        with `device` use the GPUs, too; the preloaded modules must not start CUDA.
        """
        self._preload, self._environ = tuple(preload), dict(environ or {})
        self._paths, self._without = tuple(path.resolve() for path in paths), tuple(without)
        self._builds, self._device = builds or device, device
        self._lock = threading.Lock()
        self._server: _Server | None = None

    @property
    def gaps(self) -> tuple[str, ...]:
        """What this kernel could not give to the jobs of this server; starts it when needed."""
        return self._running().gaps

    @property
    def server_pid(self) -> int:
        """Process id of the server's outer process; starts it when needed."""
        return self._running().process.pid

    def start(self) -> None:
        """Start the server and confine an empty job. Raises SandboxError with the server's own message."""
        self._running()

    def close(self) -> None:
        """End the server and all of its jobs; those meet SandboxError in their callers."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        job: str,
        payload: Any,
        blobs: Mapping[str, bytes] | None = None,
        *,
        limits: Limits | None = None,
        confined: bool = True,
        passed: Sequence[int] = (),
        until: int | None = None,
    ) -> JobResult:
        """Run `job` ("package.module:function") in a forked child and wait for its end.

        `passed` are descriptors that the job finds in `verifier.sandbox.job.passed`; they stay open here. `until` is
        one that ends the job when there is something to read.

        Whatever the job does is in the result. Raises SandboxError when the server dies or a layer that the
        kernel has cannot be put on, TypeError or ValueError when the request itself is no JSON.
        """
        if not all(job.partition(":")):
            raise ValueError(f"a job is package.module:function, not {job!r}")
        server = self._running()
        request = Request(
            job, payload, blobs or {}, limits or Limits(), confined=confined, passed=tuple(passed), until=until
        )
        try:
            got, seconds = exchange(server.control, request, private_folder=server.private_folder)
        except ServerStuck:
            server.process.kill()
            raise
        except ServerEnded as ended:
            raise SandboxError(f"{ended}; {server.last_words()}") from ended
        gaps = gaps_of(got)
        if confined and not set(gaps) <= set(server.gaps):
            raise SandboxError(f"a job was confined less than its server promised: {' '.join(gaps)}")
        return judge(got, request.limits, seconds)

    def _running(self) -> _Server:
        with self._lock:
            if self._server is not None and self._server.process.poll() is None:
                return self._server
            if self._server is not None:
                self._server.end()
                self._server = None
            self._server = self._started()
            return self._server

    def _started(self) -> _Server:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the server
            command = [sys.executable, "-P", "-u", "-m", "verifier.sandbox.server", str(theirs.fileno())]
            process = subprocess.Popen(
                command,
                env=clean_environment(self._environ, self._paths),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        server = _Server(process, ours, log, Path(tempfile.mkdtemp(prefix="warpsmith-root-")))
        try:
            self._greet(server)
        except BaseException:
            process.kill()
            server.end()
            raise
        return server

    def _greet(self, server: _Server) -> None:
        config = {
            "preload": self._preload,
            "environ": self._environ,
            "paths": [str(path) for path in self._paths],
            "without": self._without,
            "builds": self._builds,
            "device": self._device,
            "root": str(server.root),
        }
        server.control.settimeout(_START_SECONDS)
        try:
            server.control.send(json.dumps(config).encode())
            hello = json.loads(server.control.recv(_MAX_NOTE) or b"{}")
        except OSError as error:
            raise SandboxError(f"the sandbox did not start: {error}; {tail(server.log)}") from error
        server.control.settimeout(None)
        if "gaps" not in hello:
            raise SandboxError(f"the sandbox did not start: {hello.get('error') or tail(server.log)}")
        server.private_folder = hello["private_folder"]
        note = _first_note(server)
        server.gaps = (*hello["gaps"], *note)


@functools.cache
def isolation_gaps() -> tuple[str, ...]:
    """Sentences on what this kernel cannot give to a confined job; empty when every layer holds."""
    with Zygote(preload=()) as zygote:
        return zygote.gaps


def clean_environment(environ: Mapping[str, str], paths: Sequence[Path]) -> dict[str, str]:
    """Variables of a process of ours: little of the caller's, its import roots, `paths` and `environ`."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    roots = [*map(str, paths), *([] if str(PROJECT_ROOT) in installed else [str(PROJECT_ROOT)])]
    inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ}
    inherited_roots = [entry for entry in os.environ.get("PYTHONPATH", "").split(":") if os.path.isabs(entry)]
    return {
        **inherited,
        **dict.fromkeys(_ONE_THREAD, "1"),
        "LANG": "C.UTF-8",
        "HOME": "/nonexistent",
        "PYTHONPATH": ":".join(dict.fromkeys([*roots, *inherited_roots])),
        **environ,
    }


def _first_note(server: _Server) -> list[str]:
    request = Request("verifier.sandbox.job:nothing", None, {}, Limits(), confined=True)
    got, _ = exchange(server.control, request, private_folder=server.private_folder)
    return gaps_of(got)


def tail(log: IO[bytes]) -> str:
    """Why a process ended, by the end of what it wrote to stderr."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
    return last_words(log.read().decode(errors="replace"))
