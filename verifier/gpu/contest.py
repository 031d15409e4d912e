"""The supervisor's side of contestants: a warm process that forks a confined one for each candidate. No torch here."""

from __future__ import annotations

import mmap
import os
import socket
import sysconfig
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from verifier.errors import InfrastructureError, SandboxError, last_words
from verifier.gpu.protocol import FROM_RUNNER, Channel, Expired, Gone, ProtocolError
from verifier.sandbox.limits import Limits
from verifier.sandbox.outcome import JobResult
from verifier.sandbox.zygote import Zygote

CONTEST_JOB = "verifier.gpu.contestant:contest_job"
BUILD_JOB = "verifier.gpu.native:build_job"
BUILD_SECONDS = 180.0
"""Of native code on the CPU. nvcc takes 50 s for one file that includes torch's headers."""
CONTEST_PRELOAD = ("torch", "triton", "cuda.bindings.driver", "verifier.gpu.contestant")
START_SECONDS = 60.0
SHARED_DRIVER = (
    "Live: the candidate's own process speaks to the GPU's driver, whose calls no filter looks into, and it shares the "
    "GPU with the judge."
)
"""What holds for every live verdict, beside what the kernel could not give."""
_TOOLKIT = Path("/usr/local/cuda")
_SEND_SECONDS = 60.0


def live_limits(seconds: float) -> Limits:
    """Caps of a contestant that may live for `seconds`."""
    return Limits(
        wall_seconds=seconds, cpu_seconds=600, memory_bytes=32 << 30, file_bytes=1 << 30, folder_bytes=4 << 30,
        processes=512, descriptors=1024, map_freely=True,
    )  # fmt: skip


def builder() -> Zygote:
    """The server whose jobs build the native code of live files: a contestant's compilers, and no GPU."""
    hidden = {**_environ({}), "CUDA_VISIBLE_DEVICES": ""}  # the server's own process could find one
    return Zygote(preload=("torch", "verifier.gpu.native"), environ=hidden, builds=True)


class NoContestant(InfrastructureError):
    """This machine cannot start a confined process on its GPU: no file runs live here."""


class ContestantProcess:
    """A contestant: its line, and the thread that waits for its end."""

    def __init__(self, zygote: Zygote, device: str, seconds: float) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.flags = os.memfd_create("warpsmith-flags")
        os.ftruncate(self.flags, mmap.PAGESIZE)
        self._until, self._stop = os.pipe()
        self._zygote, self._device, self._seconds = zygote, device, seconds
        self._result: JobResult | BaseException | None = None
        self._thread = threading.Thread(target=self._live, args=(theirs, os.dup(self.flags)), daemon=True)
        self._thread.start()

    def hand_over(self, judge: Channel) -> None:
        """Gives the judge its line to the contestant. Raises NoContestant where that did not start."""
        try:
            said = Channel(self.socket, FROM_RUNNER).receive(seconds=START_SECONDS).header
        except (Gone, Expired, ProtocolError) as error:
            raise NoContestant(f"the contestant did not start: {error}; {self.end()}") from None
        if "hello" not in said:
            raise NoContestant(f"the contestant did not start: it said {str(said)[:200]}")
        judge.send({"do": "contestant"}, fds=[self.socket.fileno(), self.flags], seconds=_SEND_SECONDS)

    def end(self) -> str:
        """Ends it with all that it started; how it ended, in words."""
        if self._stop >= 0:
            with suppress(OSError):
                os.write(self._stop, b"e")
        self._thread.join()
        self.socket.close()
        for fd in (self._stop, self._until, self.flags):
            if fd >= 0:
                os.close(fd)
        self._stop = self._until = self.flags = -1
        found = self._result
        if not isinstance(found, JobResult):
            return str(found)
        return f"{found.error}, {last_words(found.output)}" if found.output else found.error

    def _live(self, end: socket.socket, flags: int) -> None:
        try:
            self._result = self._zygote.run(
                CONTEST_JOB, {"device": self._device}, limits=live_limits(self._seconds),
                passed=[end.fileno(), flags], until=self._until,
            )  # fmt: skip
        except BaseException as error:  # noqa: BLE001 - the thread's end: `end` says it
            self._result = error
        finally:
            end.close()
            os.close(flags)


class Contestants:
    """The warm process, started on first use; `start` forks a contestant from it."""

    def __init__(self, device: str, environ: Mapping[str, str], paths: Sequence[Path]) -> None:
        """`device`: what opens the device in the contestant. `environ`: variables of the processes of this GPU."""
        self._device = device
        preload = (*CONTEST_PRELOAD, device.partition(":")[0])
        self._zygote = Zygote(preload=preload, environ=_environ(environ), paths=paths, device=True)

    @property
    def gaps(self) -> tuple[str, ...]:
        """What confinement lacks for contestants here."""
        return (*self._zygote.gaps, SHARED_DRIVER)

    def start(self, seconds: float) -> ContestantProcess:
        """A contestant that is on its way, and lives `seconds` at most. Raises NoContestant."""
        try:
            self._zygote.start()
        except SandboxError as error:
            raise NoContestant(str(error)) from None
        return ContestantProcess(self._zygote, self._device, seconds)

    def close(self) -> None:
        with suppress(SandboxError):
            self._zygote.close()


def _environ(given: Mapping[str, str]) -> dict[str, str]:
    """Variables that CUDA and builds of extensions need."""
    toolkit = Path(os.environ.get("CUDA_HOME", str(_TOOLKIT)))
    programs = [sysconfig.get_path("scripts"), str(toolkit / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]
    made = {"PATH": ":".join(programs), "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "MAX_JOBS": str(os.cpu_count() or 1)}
    if toolkit.exists():
        made["CUDA_HOME"] = str(toolkit)
    passed_on = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
    return made | {name: os.environ[name] for name in passed_on if name in os.environ} | {
        name: given[name] for name in passed_on if name in given
    }  # fmt: skip
