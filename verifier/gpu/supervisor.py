"""The supervisor of one GPU: no CUDA and no torch, two kinds of processes, one visit at a time.

    with GpuWorker() as worker:
        visit = worker.visit(request, Plans(plan, blobs))

It starts a judge and a runner, keeps a second runner warm, kills what hangs and replaces what is lost. Modelled on
KernelGYM's workers, with a warm spare in place of its pause.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from verifier.errors import InfrastructureError, ProblemError
from verifier.gpu.contest import Contestants, NoContestant
from verifier.gpu.protocol import FROM_RUNNER, TO_SUPERVISOR, Channel, Expired, Gone, ProtocolError
from verifier.gpu.visit import Fault, Request, Visit, read_answer
from verifier.sandbox.zygote import clean_environment, tail
from verifier.verdict import FileRun

CUDA_DEVICE = "verifier.gpu.cuda_device:open_device"
START_SECONDS = 180.0
_NO_CUDA_BEFORE_FORK = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""torch.cuda.is_available() must not start CUDA in the nursery."""
_END_SECONDS = 10.0
_SEND_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Plans:
    """The candidate's plan as JSON with its blobs, or its source where the file itself runs, or both; and the base's
    plan where times are asked for."""

    plan: Mapping[str, Any] | None = None
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    base: Mapping[str, Any] | None = None
    base_blobs: Mapping[str, bytes] = field(default_factory=dict)
    source: str | None = None
    built: bytes = b""
    """Native code of the source, as `native.build_job` left it."""

    def packed(self) -> dict[str, bytes]:
        """Blobs of the message to the judge: plans, and of their kernels what a GPU loads."""
        made = {} if self.source is None else {"source": self.source.encode()}
        made |= {"built": self.built} if self.built else {}
        if self.plan is not None:
            made |= {"plan": json.dumps(self.plan).encode(), **_cubins("plan", self.blobs)}
        if self.base is not None:
            made |= {"base": json.dumps(self.base).encode(), **_cubins("base", self.base_blobs)}
        return made


def _cubins(prefix: str, blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{prefix}/{name}": data for name, data in blobs.items() if name.endswith(".cubin")}


class _Process:
    """A child in a session of its own, with one end of a socket."""

    def __init__(self, module: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), *arguments],
                env=dict(environ), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=self.log, start_new_session=True,
            )  # fmt: skip
        self.socket = ours

    def kill(self) -> None:
        """Ends it and all that it started, at once."""
        self.socket.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)
        self.log.close()


def hear_hello(channel: Channel, what: str, log: IO[bytes]) -> None:
    """Waits for the first message. Raises InfrastructureError."""
    try:
        said = channel.receive(seconds=START_SECONDS).header
    except (Gone, Expired, ProtocolError) as error:
        raise InfrastructureError(f"the {what} did not start: {error}; {tail(log)}") from None
    if "hello" not in said:
        raise InfrastructureError(f"the {what} did not start: it said {str(said)[:200]}")


@dataclass(slots=True)
class _Runner:
    """A runner: its process, the judge's end of its socket until that is handed over, and what it writes to stderr."""

    pid: int
    socket: socket.socket
    flags: int
    log: IO[bytes]

    def hand_over(self, judge: Channel) -> None:
        """Gives the judge its line to the runner. Raises InfrastructureError where the runner did not start."""
        hear_hello(Channel(self.socket, FROM_RUNNER), "runner", self.log)
        judge.send({"do": "runner"}, fds=[self.socket.fileno(), self.flags], seconds=_SEND_SECONDS)
        self.close_line()

    def close_line(self) -> None:
        self.socket.close()
        if self.flags >= 0:
            os.close(self.flags)
            self.flags = -1


class _Nursery(_Process):
    """The process that forks runners."""

    def __init__(self, device: str, environ: Mapping[str, str]) -> None:
        super().__init__("verifier.gpu.nursery", [device], environ)
        self._channel = Channel(self.socket, TO_SUPERVISOR)
        self._greeted = False

    def spawn(self) -> _Runner:
        """A runner that is on its way. Raises InfrastructureError."""
        if not self._greeted:
            hear_hello(self._channel, "nursery of runners", self.log)
            self._greeted = True
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the runner
        flags = os.memfd_create("warpsmith-flags")
        os.ftruncate(flags, mmap.PAGESIZE)
        with theirs:
            pid = self._ask({"do": "spawn"}, [theirs.fileno(), flags, log.fileno()])
        return _Runner(pid, ours, flags, log)

    def end(self, runner: _Runner) -> None:
        """Kills a runner and waits for its end."""
        with suppress(InfrastructureError):
            self._ask({"do": "end", "pid": runner.pid}, [])
        runner.close_line()
        runner.log.close()

    def _ask(self, header: Mapping[str, Any], fds: Sequence[int]) -> int:
        try:
            self._channel.send(header, fds=fds, seconds=_SEND_SECONDS)
            return int(self._channel.receive(seconds=_SEND_SECONDS).header["pid"])
        except (Gone, Expired, ProtocolError) as error:
            raise InfrastructureError(f"the nursery of runners gave no answer: {error}; {tail(self.log)}") from None


class GpuWorker:
    """Exclusive use of one GPU. Thread-safe: visits wait for each other."""

    def __init__(
        self, device: str = CUDA_DEVICE, *, environ: Mapping[str, str] | None = None, paths: Sequence[Path] = (),
        spares: int = 1,
    ) -> None:  # fmt: skip
        """`device`: `package.module:function` that opens the device in judge and runner. `environ`: variables of both,
        for example CUDA_VISIBLE_DEVICES. `paths`: import roots beside ours. `spares`: runners kept warm."""
        self._device = device
        inherited = {k: os.environ[k] for k in ("CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME") if k in os.environ}
        inherited.setdefault("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))  # measured ceilings
        self._environ = clean_environment({**_NO_CUDA_BEFORE_FORK, **inherited, **(environ or {})}, paths)
        self._spare_count = spares
        self._contestants = Contestants(device, self._environ, paths)
        self._lock = threading.Lock()
        self._judge: _Process | None = None
        self._channel: Channel | None = None
        self._nursery: _Nursery | None = None
        self._runner: _Runner | None = None
        self._spares: list[_Runner] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts what is missing. Raises InfrastructureError."""
        with self._lock:
            self._ready()

    def close(self) -> None:
        """Ends all processes."""
        with self._lock:
            self._end_judge()
            self._end_nursery()
            self._contestants.close()

    def visit(self, request: Request, plans: Plans, *, fresh_runner: bool = False) -> Visit:
        """Has one candidate judged, live where `request.path` says so; `fresh_runner`: in a runner that met no plan
        before. Raises InfrastructureError (also for a judge that died: the next visit has another one), ProblemError
        for the problem's file, ValueError where times are asked for without a base.
        """
        answer = self._answered(request, plans, fresh_runner=fresh_runner)
        assert isinstance(answer, Visit)
        return answer.model_copy(update={"isolation": self._contestants.gaps}) if plans.source is not None else answer

    def run_file(self, request: Request, plans: Plans) -> FileRun:
        """Has a candidate's file run live beside its plan. Raises what `visit` raises."""
        answer = self._answered(request, plans, fresh_runner=False)
        assert isinstance(answer, FileRun)
        return answer

    def _answered(self, request: Request, plans: Plans, *, fresh_runner: bool) -> Visit | FileRun:
        if request.timed and request.path != "file" and plans.base is None:
            raise ValueError("times need a base")
        with self._lock:
            if fresh_runner:
                self._end_runner()
            try:
                answer = self._ask(request, plans)
                if isinstance(answer, Fault) and answer.kind == "runner":
                    self._end_runner()
                    answer = self._ask(request, plans)
                if self._was_full(answer, request):
                    self._end_runner()
                    answer = self._ask(request, plans)
            except NoContestant:  # before the judge heard anything
                raise
            except BaseException:
                self._end_judge()
                raise
            return self._settle(answer, request)

    def _was_full(self, answer: Visit | FileRun | Fault, request: Request) -> bool:
        """Whether to judge once more: what the judge kept of other problems may have been in the way. It keeps nothing
        now, and a new runner has seen none of the inputs."""
        if not isinstance(answer, Visit) or not answer.full or request.path != "plan":
            return False
        return sum(answer.seconds.values()) < request.limit_seconds / 4

    def pids(self) -> dict[str, list[int]]:
        """Process ids by part."""
        judge = [self._judge.process.pid] if self._judge else []
        nursery = [self._nursery.process.pid] if self._nursery else []
        runner = [self._runner.pid] if self._runner else []
        return {"judge": judge, "nursery": nursery, "runner": runner, "spare": [s.pid for s in self._spares]}

    def _ask(self, request: Request, plans: Plans) -> Visit | FileRun | Fault:
        channel = self._ready()
        assert self._judge is not None
        seconds = request.limit_seconds + START_SECONDS
        contestant = None if plans.source is None else self._contestants.start(seconds)
        try:
            if contestant is not None:
                contestant.hand_over(channel)
            header = {"do": "visit", "request": request.model_dump(mode="json")}
            channel.send(header, plans.packed(), seconds=_SEND_SECONDS)
            return read_answer(channel.receive(seconds=request.limit_seconds).header)
        except (Gone, Expired, ProtocolError) as error:
            raise InfrastructureError(f"the judge gave no answer: {error}; {tail(self._judge.log)}") from None
        finally:
            if contestant is not None:
                contestant.end()

    def _settle(self, answer: Visit | FileRun | Fault, request: Request) -> Visit | FileRun:
        if isinstance(answer, FileRun):
            self._end_runner()  # what it ran is one of many: cheaper than to ask whether it is whole
            return answer
        if isinstance(answer, Visit):
            if answer.runner_lost:
                self._end_runner()
                self._refill()
            return answer
        if answer.kind == "problem":
            raise ProblemError(answer.message, file=request.problem.file, line=answer.line)
        self._end_judge()
        raise InfrastructureError(f"the judge failed: {answer.message}")

    def _ready(self) -> Channel:
        """A judge with a runner, and spares on the way."""
        if self._nursery is not None and self._nursery.process.poll() is not None:
            self._end_nursery()
        if self._nursery is None:
            self._nursery = _Nursery(self._device, self._environ)
        if self._judge is None or self._channel is None or self._judge.process.poll() is not None:
            self._end_judge()
            self._judge = _Process("verifier.gpu.judge_process", [self._device], self._environ)
            self._channel = Channel(self._judge.socket, TO_SUPERVISOR)
            self._refill()
            hear_hello(self._channel, "judge", self._judge.log)
        if self._runner is None:
            self._refill()
            self._runner = self._spares.pop(0)
            self._runner.hand_over(self._channel)
        return self._channel

    def _refill(self) -> None:
        """Starts spares, and one more where the runner is missing. Does not wait for them."""
        assert self._nursery is not None
        while len(self._spares) < self._spare_count + (self._runner is None):
            self._spares.append(self._nursery.spawn())

    def _end_runner(self) -> None:
        if self._runner is not None and self._nursery is not None:
            self._nursery.end(self._runner)
        self._runner = None

    def _end_judge(self) -> None:
        if self._judge is not None:
            self._judge.kill()
        self._judge = self._channel = None
        self._end_runner()

    def _end_nursery(self) -> None:
        self._end_runner()
        if self._nursery is not None:
            for spare in self._spares:
                self._nursery.end(spare)
            self._nursery.kill()
        self._nursery = None
        self._spares.clear()
