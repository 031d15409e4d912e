"""NVRTC, NVIDIA's run-time compiler for CUDA C++, called without a GPU: source in, cubin and PTX out.

The library comes from the PyPI package nvidia-cuda-nvrtc (a CUDA build of torch brings it along), its headers from
nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl: all four are the optional extra `cuda`. NVRTC looks for
its builtins by name only, so they are loaded first; no LD_LIBRARY_PATH is needed. Compilation is one thread of
this process and writes no file.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MISSING = (
    "CUDA C++ needs NVRTC, which is not installed here: install the extra `cuda` "
    "(pip install 'warpsmith[cuda]') or a CUDA build of torch"
)
MAX_LOG = 64 << 10
_ERROR = re.compile(
    r"^(?P<file>[^\n()]*)\((?P<line>\d+)\): (?:catastrophic )?error(?: #[\w-]+)?: (?P<message>.*)$", re.M
)


class NvrtcMissingError(RuntimeError):
    """NVRTC is not installed, or cannot be loaded."""

    def __init__(self, why: str = "") -> None:
        super().__init__(f"{MISSING}{f' ({why})' if why else ''}")


@dataclass(frozen=True, slots=True)
class CudaError:
    """One error of the compiler's log. `line` and `column` are 1-based; `text` is the source line it shows."""

    file: str
    line: int
    column: int | None
    message: str
    text: str


class CudaCompileError(RuntimeError):
    """CUDA C++ that does not compile. `log` is the compiler's own, `program` the source that was compiled."""

    def __init__(self, log: str, program: str, name: str) -> None:
        self.log, self.program, self.name = log[:MAX_LOG], program, name
        super().__init__(f"NVRTC_ERROR_COMPILATION\n{self.log}")

    def errors(self) -> tuple[CudaError, ...]:
        """Errors of the log in order; empty when the log has another form (the assembler's, for example)."""
        return tuple(_errors(self.log))


def _errors(log: str) -> Iterator[CudaError]:
    for found in _ERROR.finditer(log):
        shown = log[found.end() + 1 :].split("\n", 2)
        text, caret = (shown[0], shown[1]) if len(shown) > 1 and shown[1].strip() == "^" else ("", "")
        column = len(caret) - 2 if caret else None
        yield CudaError(found["file"], int(found["line"]), column, found["message"].strip(), text.strip())


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one compilation made. `lowered` maps name expressions to symbol names."""

    cubin: bytes
    ptx: str
    log: str
    lowered: Mapping[str, str]


def folders() -> tuple[Path, ...]:
    """Where NVIDIA's wheels and toolkits put their `lib` and `include`, the best first."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or ())] if spec is not None else []
    wheels = [found for root in roots for found in sorted(root.glob("cu[0-9]*"), reverse=True)]
    older = [root / name for root in roots for name in ("cuda_nvrtc", "cuda_runtime", "cuda_cccl")]
    return tuple(p for p in (*wheels, *older, Path("/usr/local/cuda")) if p.is_dir())


def include_folders() -> tuple[Path, ...]:
    """Folders with CUDA's headers (cuda_bf16.h, mma.h, cooperative_groups.h, cuda/std/...)."""
    found = [f for p in folders() for f in (p / "include", p / "include" / "cccl") if f.is_dir()]
    return tuple(found)


class Nvrtc:
    """The loaded library. Use `load()`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(
        self,
        source: str,
        *,
        name: str = "default_program",
        options: Sequence[str] = (),
        names: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Compiled:
        """Compiles one program; `headers` are texts that an #include finds by name before any folder.

        The program is given a folder, the root, so that line tables and names of static variables do not depend on
        where this process works.

        Raises CudaCompileError with the log.
        """
        held, library = headers or {}, self._library
        program, path = ctypes.c_void_p(), f"/{name.lstrip('/')}"
        texts = (ctypes.c_char_p * len(held))(*(t.encode() for t in held.values()))
        keys = (ctypes.c_char_p * len(held))(*(k.encode() for k in held))
        code = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), path.encode(), len(held), texts, keys)
        if code != 0:
            raise CudaCompileError(f"nvrtcCreateProgram failed with {code}", source, name)
        try:
            return self._compiled(program, source, name, options, names)
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _compiled(
        self, program: ctypes.c_void_p, source: str, name: str, options: Sequence[str], names: Sequence[str]
    ) -> Compiled:
        library = self._library
        for expression in names:
            library.nvrtcAddNameExpression(program, expression.encode())
        flags = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
        code = library.nvrtcCompileProgram(program, len(options), flags)
        log = self._read(program, "ProgramLog").decode(errors="replace")
        log = re.sub(rf"(?m)^/(?={re.escape(name.lstrip('/'))}\()", "", log)
        if code != 0:
            raise CudaCompileError(log.strip() or f"nvrtcCompileProgram failed with {code}", source, name)
        lowered = {expression: self._lowered(program, expression) for expression in names}
        ptx = self._read(program, "PTX").decode(errors="replace")
        return Compiled(self._read(program, "CUBIN"), ptx, log, {k: v for k, v in lowered.items() if v})

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(max(size.value, 1))
        getattr(self._library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw[: size.value] if what == "CUBIN" else buffer.value

    def _lowered(self, program: ctypes.c_void_p, expression: str) -> str:
        found = ctypes.c_char_p()
        self._library.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(found))
        return found.value.decode() if found.value else ""


@cache
def load() -> Nvrtc:
    """The library, loaded once per process (0.1 s). Raises NvrtcMissingError."""
    why = ""
    for folder in folders():
        for library in sorted((*folder.glob("lib/libnvrtc.so.*"), *folder.glob("lib64/libnvrtc.so.*")), reverse=True):
            try:
                for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
                return Nvrtc(ctypes.CDLL(str(library)))
            except OSError as failure:
                why = str(failure)
    raise NvrtcMissingError(why)


def present() -> bool:
    """Whether the library is installed; nothing is loaded."""
    return any(any(folder.glob(f"{lib}/libnvrtc.so.*")) for folder in folders() for lib in ("lib", "lib64"))
