"""Child processes with a deadline, forked from a server that has torch and Triton imported and no CUDA context.

A child leads its own process group and reports by a file that it rewrites at every stage, so that a killed one still
says how far it came. Nothing confines it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PRELOAD = (
    "torch", "torch._dynamo", "triton", "triton.language", "numpy", "experiments.fidelity.direct",
    "experiments.fidelity.replay",
)  # fmt: skip
_MESSAGE = 600
_THREADS = 2


class Report:
    """What a child has to say, kept in `<folder>/<kind>.json`."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._path = folder / f"{kind}.json"
        self._all: dict[str, Any] = {}
        self._part = self._all

    def within(self, label: str) -> None:
        """What follows is noted under this label."""
        self._part = self._all.setdefault(label, {})

    def stage(self, name: str) -> None:
        self.note(stage=name)
        self.save()

    def note(self, **facts: Any) -> None:
        self._part.update(facts)

    def end(self, outcome: Mapping[str, Any]) -> None:
        """Notes the outcome of the whole job and saves."""
        self._all.update(outcome)
        self.save()

    def noted(self, name: str) -> Any:
        return self._part.get(name)

    def save(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._all))
        os.replace(part, self._path)


def read_report(folder: Path, kind: str) -> dict[str, Any]:
    """The last saved report; empty when there is none."""
    try:
        return dict(json.loads((folder / f"{kind}.json").read_text()))
    except FileNotFoundError:
        return {}


class Children:
    """Starts children. The server starts with the first one and ends with this process."""

    def __init__(self, preload: Sequence[str] = PRELOAD) -> None:
        # An import that asks whether there is a GPU must not initialise CUDA in the server: its forks could not use it.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def run(self, job: str, folder: Path, payload: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Runs `module:function` (Report, payload) in `folder` and gives its report with `status` ("ok", "error",
        "timeout" or "crash"), `message` and `wall_seconds`. Its processes have been killed when this returns."""
        kind = job.rpartition(":")[2]
        (folder / f"{kind}.json").unlink(missing_ok=True)
        begin = time.monotonic()
        process = self._context.Process(target=child, args=(job, str(folder), dict(payload)))
        process.start()
        process.join(seconds)
        late = process.is_alive()
        end_group(process.pid)
        process.kill()
        process.join()
        found = read_report(folder, kind)
        wall = {"wall_seconds": time.monotonic() - begin}
        if late:
            return {**found, **wall, "status": "timeout", "message": f"ran longer than {seconds:g} s"}
        if process.exitcode or "status" not in found:
            said = (folder / f"{kind}.log").read_text(errors="replace")[-_MESSAGE:]
            return {**found, **wall, "status": "crash", "message": f"exit code {process.exitcode}: {said}"}
        return {**found, **wall}


def told(error: BaseException) -> str:
    """Type and text; of a long text both ends, since compilers put the reason last."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _MESSAGE else f"{text[: _MESSAGE // 4]} ... {text[-_MESSAGE * 3 // 4 :]}"


def end_group(pid: int | None) -> None:
    """Kills what is left of a child's process group."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def child(job: str, folder: str, payload: dict[str, Any]) -> None:
    """Body of a child; never returns. What the answer raises becomes part of the report: this is a process boundary."""
    os.setsid()
    module, _, kind = job.rpartition(":")
    log = os.open(f"{folder}/{kind}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(_THREADS)  # several children share the cores
    report = Report(Path(folder), kind)
    outcome = {"status": "ok", "message": ""}
    try:
        getattr(import_module(module), kind)(report, payload)
    except BaseException as error:  # noqa: BLE001 - a process boundary
        traceback.print_exc()
        outcome = {"status": "error", "message": told(error)}
        report.note(**outcome)
    report.end(outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # CUDA's and Triton's own endings take long and have nothing to say
