"""Native code of a file that runs live: built on the CPU, before a GPU is leased.

A confined job that has compilers and no GPU executes the file, so that torch's builder (`load_inline`, `load`) does its
work. All that it leaves in its folder goes, as bytes into which nobody looks, to the contestant of the same candidate,
which puts it at the same paths of a folder of its own. Where the file asks there for the same code again, built in the
same way, nothing is left to do. A file that builds only where it finds a GPU builds on the contestant's time.
"""

from __future__ import annotations

import linecache
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verifier.sandbox import wire
from verifier.specs import rebuild

FILE = "candidate.py"
FAILED = "Error building extension"
"""How torch's builder begins."""
_MOST_BYTES = 128 << 20
_TEXT = 2000
_ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"


def load_module(source: str) -> types.ModuleType:
    """Executes a candidate's file in the current folder. Raises whatever it raises."""
    path = Path.cwd() / FILE
    path.write_text(source, encoding="utf-8")
    linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))
    module = types.ModuleType("candidate")
    module.__file__ = str(path)
    sys.modules["candidate"] = module
    exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def build_job(
    payload: Mapping[str, Any], blobs: dict[str, bytes], workdir: Path
) -> tuple[dict[str, str], dict[str, bytes]]:  # fmt: skip
    """The job of the confined child: `{"architecture": "sm_90a", "init": [SPEC..]}` and the blob `source`.

    Gives `{"failed": what the builder says, or nothing}` and the blob `built`, which `take` takes.
    """
    os.environ[_ARCHITECTURES] = arch = arch_list(payload["architecture"])
    failed = ""
    try:
        model = load_module(blobs["source"].decode()).ModelNew
        if not any(workdir.rglob("*.so")):  # it may build where it is made
            model(*rebuild({"kind": "list", "items": payload["init"]}, iter(())))
    except BaseException as error:  # noqa: BLE001 - the candidate's own; most that fails here wants a GPU
        text = said(error)
        failed = shortened(text) if FAILED in text else ""
    found = [path for path in workdir.rglob("*") if path.name not in (FILE, "lock") and path.is_file()]
    small = sum(path.stat().st_size for path in found) <= _MOST_BYTES
    files = {str(path.relative_to(workdir)): path.read_bytes() for path in found if small}
    return {"failed": failed}, {"built": b"".join(wire.pack({"architectures": arch}, files))}


def take(built: bytes) -> None:
    """Puts what `build_job` left into the current folder. torch's builder takes it as it is, unless a source or a
    command is another one by then: what it writes before it builds is compared, not its time.
    """
    from torch.utils import cpp_extension  # looks for a GPU, which no process may that is forked later

    header, files = wire.unpack(built)
    os.environ[_ARCHITECTURES] = str(header["architectures"])
    held = {Path.cwd() / name: data for name, data in files.items()}
    for path, data in held.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    build = cpp_extension._run_ninja_build

    def unless_built(build_directory: str, verbose: bool, error_prefix: str) -> None:
        mine = Path(build_directory).resolve()
        made = any(path.suffix == ".so" and path.parent == mine for path in held)
        if not made or any(path.read_bytes() != data for path, data in held.items()):
            build(build_directory, verbose, error_prefix)

    cpp_extension._run_ninja_build = unless_built


def arch_list(architecture: str) -> str:
    """`sm_90a` as torch's builder wants it, `9.0a`: with all that this architecture alone has."""
    digits = architecture.removeprefix("sm_").rstrip("af")
    major, minor = digits[:-1], digits[-1:]
    return f"{major}.{minor}" + "a" * (int(major) >= 9)


def said(error: BaseException) -> str:
    """`Type: message`."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - the candidate's __str__
        return f"{type(error).__name__}: an exception that cannot be printed"


def shortened(text: str) -> str:
    """At most 2,000 characters: of a long text the start, and the lines that name an error."""
    if len(text) <= _TEXT:
        return text
    named = [line for line in text.splitlines()[1:] if "error" in line.lower()]
    head = text[: _TEXT // 4]
    return f"{head}\n...\n" + "\n".join(named)[: _TEXT * 3 // 4 - 5]
