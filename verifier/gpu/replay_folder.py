"""A plan in a folder, and a tool of the CUDA toolkit over one replay of it (`replay_once.py`).

    plan.json      the plan as the tracing process wrote it
    request.json   problem, workload, seed, choice of alternatives
    blobs/         cubins, TTIR, PTX by name

What profiler and sanitizer see is trusted code and the candidate's kernels, never its Python. A tool that is missing,
refused or late costs a sentence, not a verdict. Free of CUDA and torch.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from verifier.problem import Problem
from verifier.sandbox.zygote import clean_environment
from verifier.verdict import Record

_LOG_BYTES = 16 << 20
_PLACES = (Path("/usr/local/cuda/bin"), Path("/opt/nvidia/nsight-compute"))


class Replay(Record):
    """What `replay_once` runs beside the plan."""

    problem: Problem
    workload: str
    seed: int
    choice: dict[int, int] = Field(default_factory=dict)
    """Alternatives of forward steps, the first where none is named."""


class ToolLog(NamedTuple):
    """What a tool wrote, and why the replay under it failed, empty where it ended well."""

    text: str
    failure: str


class ToolFailed(Exception):
    """A tool gave nothing. One sentence."""


def write_folder(folder: Path, plan: Mapping[str, Any], blobs: Mapping[str, bytes], replay: Replay) -> Path:
    """Writes what `replay_once` reads; gives the folder. Names of blobs were checked by `read_plan`."""
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "request.json").write_text(replay.model_dump_json())
    for name, data in blobs.items():
        if Path(name).name != name:
            raise ValueError(f"a blob is named {name!r}")
        (folder / "blobs" / name).write_bytes(data)
    return folder


def pack_folder(plan: Mapping[str, Any], blobs: Mapping[str, bytes], replay: Replay) -> bytes:
    """The same folder as one zip file, equal for equal content; `unpack_folder` writes it."""
    parts = {"plan.json": json.dumps(plan).encode(), "request.json": replay.model_dump_json().encode()}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**parts, **{f"blobs/{name}": blobs[name] for name in sorted(blobs)}}.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def unpack_folder(packed: bytes, folder: Path) -> Path:
    """Writes the folder of `pack_folder` and gives it. Raises ValueError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            plan, request = json.loads(archive.read("plan.json")), archive.read("request.json")
            names = [name for name in archive.namelist() if name.startswith("blobs/")]
            blobs = {name.removeprefix("blobs/"): archive.read(name) for name in names}
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"this is no packed plan: {error}") from error
    return write_folder(folder, plan, blobs, Replay.model_validate_json(request))


def find_tool(name: str, places: Sequence[Path] = _PLACES) -> Path | None:
    """An executable on PATH or where the toolkit puts it."""
    home = [Path(os.environ["CUDA_HOME"]) / "bin"] if "CUDA_HOME" in os.environ else []
    path = os.pathsep.join(map(str, [os.environ.get("PATH", ""), *home, *places]))
    found = shutil.which(name, path=path)
    return Path(found) if found else None


def run_tool(
    name: str, options: Sequence[str], folder: Path, *, seconds: float, environ: Mapping[str, str] | None = None,
) -> ToolLog:  # fmt: skip
    """Tool `name` over one replay of `folder`. Raises ToolFailed where it is missing, late or says nothing."""
    tool = find_tool(name)
    if tool is None:
        raise ToolFailed(f"{name} is not installed here")
    replay = [sys.executable, "-P", "-m", "verifier.gpu.replay_once", str(folder)]
    clean = clean_environment({**_passed_on(), "LC_ALL": "C", **(environ or {})}, ())
    with tempfile.TemporaryDirectory() as made:
        log = Path(made) / "log"
        code, said = run_alone([str(tool), "--log-file", str(log), *options, *replay], clean, seconds)
        text = log.read_bytes()[:_LOG_BYTES].decode(errors="replace") if log.exists() else ""
    if code is None:
        raise ToolFailed(f"{name} did not finish within {seconds:g} s")
    failure = f"it ended with {code}: {said or 'no reason'}" if code else ""
    if not text.strip():
        raise ToolFailed(f"{name} said nothing; {failure or 'it ended well'}")
    return ToolLog(text, failure)


def run_alone(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> tuple[int | None, str]:
    """Exit code, None when it ran past its time and was killed with all it started, and its last line on stderr."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
        lines = log.read().decode(errors="replace").strip().splitlines()
    return code, lines[-1] if lines else ""


def _passed_on() -> dict[str, str]:
    return {k: os.environ[k] for k in ("CUDA_VISIBLE_DEVICES", "CUDA_HOME") if k in os.environ}
