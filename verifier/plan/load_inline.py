"""torch's C++ extensions in a trace: the host code cannot be traced, the device code is compiled for its errors.

`load_inline` (and `load` of files that the candidate wrote) gets the text of the extension. Its device code goes
through NVRTC for the target: an error in it ends the trace as a compile error with its line; otherwise the file is
`untraceable` for its native host code, and a finding tells registers, spills and shared memory of its kernels. An
error that only our cutting can explain (a dropped host name, a header that NVRTC lacks) is not held against it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from verifier.plan import cuda_abi, nvrtc
from verifier.plan.cuda_options import header_options
from verifier.plan.device_code import DeviceCode, extract
from verifier.plan.record import Recorder, Untraceable
from verifier.plan.textutil import shown
from verifier.target import Target

NATIVE = "the file builds a C++ extension; its native host code cannot be traced"
TORCH_FLAGS = (
    "-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__", "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
)  # fmt: skip
"""What torch gives nvcc."""
PROGRAM = "cuda_source"
MAX_SOURCE = 4 << 20
_UNDEFINED = re.compile(r'(?:identifier|name) "(\w+)"|namespace "(?:[\w:]+)" has no member "(\w+)"|"(\w+)" is not a')
_CUT = re.compile(r"cannot open source file|host function")
_FOREIGN = re.compile(r"\b(?:std|at|c10|torch|thrust|cub|cooperative_groups|cutlass|curand\w*|cuda[A-Z]\w*)\b")
"""What NVRTC has in another form than nvcc, or our prelude only in part."""
_PTXAS = re.compile(r"Compiling entry function '(?P<name>[^']+)'.*?(?P<spill>\d+) bytes spill stores", re.S)


@dataclass(frozen=True, slots=True)
class KernelProfile:
    """Static profile of one kernel; sizes in bytes, per thread but for `shared`."""

    name: str
    registers: int
    spill: int
    shared: int


@dataclass(frozen=True, slots=True)
class Check:
    """What NVRTC said of device code. `error` is None when it compiles; `certain` when the source is at fault."""

    kernels: tuple[KernelProfile, ...]
    error: nvrtc.CudaCompileError | None = None
    certain: bool = False


def check(source: str, target: Target, flags: Sequence[str] = ()) -> Check:
    """Compiles the device code of one source. Raises NvrtcMissingError."""
    code = extract(source, PROGRAM)
    if code.empty:
        return Check(())
    options = [
        f"--gpu-architecture={target.compiler_arch}", "--std=c++17", "--ptxas-options=-v", *TORCH_FLAGS,
        *_shared_flags(flags), *header_options(),
    ]  # fmt: skip
    try:
        made = _compiled(code, options)
    except nvrtc.CudaCompileError as failure:
        shifted = nvrtc.CudaCompileError(failure.log, source, PROGRAM)
        return Check((), shifted, _certain(shifted, code))
    return Check(_profiles(made))


def _compiled(code: DeviceCode, options: Sequence[str]) -> nvrtc.Compiled:
    """With the templates that the host code launches, if their arguments can be known here; else without."""
    compiler = nvrtc.load()
    if code.instances:
        try:
            return compiler.compile(code.text, name=PROGRAM, options=options, names=sorted(code.instances))
        except nvrtc.CudaCompileError:
            pass
    return compiler.compile(code.text, name=PROGRAM, options=options)


def _shared_flags(flags: Sequence[str]) -> list[str]:
    """Flags that nvcc and NVRTC both take."""
    return [f for f in flags if f.startswith(("-D", "-U")) or f in ("--use_fast_math", "-use_fast_math")]


def _profiles(made: nvrtc.Compiled) -> tuple[KernelProfile, ...]:
    spills = {m["name"]: int(m["spill"]) for m in _PTXAS.finditer(made.log)}
    found = []
    for name in cuda_abi.kernels(made.cubin):
        facts = cuda_abi.read_facts(made.cubin, name)
        found.append(KernelProfile(shown(name), facts.registers, spills.get(name, 0), facts.shared))
    return tuple(found)


def _certain(failure: nvrtc.CudaCompileError, code: DeviceCode) -> bool:
    """Whether every error lies in the source itself and none can come of what was cut away."""
    errors = failure.errors()
    if not errors:
        return False
    for error in errors:
        names = {n for groups in _UNDEFINED.findall(error.message) for n in groups if n}
        if error.file != PROGRAM or names & code.dropped or _CUT.search(error.message):
            return False
        if any(name.isupper() for name in names) or _FOREIGN.search(f"{error.message} {error.text}"):
            return False
    return True


# -- in the trace ----------------------------------------------------------------------------------


class Extensions:
    """Stands for torch.utils.cpp_extension's `load_inline` and `load`."""

    def __init__(self, target: Target, recorder: Recorder) -> None:
        self._target, self._recorder = target, recorder

    def load_inline(self, name: str = "", cpp_sources: Any = (), cuda_sources: Any = None, *args: Any,
                    **kwargs: Any) -> NoReturn:  # fmt: skip
        flags = kwargs.get("extra_cuda_cflags") or ()
        self._check([*_texts(cuda_sources), *_texts(cpp_sources)], flags)

    def load(self, name: str = "", sources: Any = (), *args: Any, **kwargs: Any) -> NoReturn:
        paths = [Path(p) for p in _texts(sources) if p.endswith((".cu", ".cuh"))]
        written = [p.read_text(errors="replace") for p in paths if p.is_file()]
        self._check(written, kwargs.get("extra_cuda_cflags") or ())

    def _check(self, sources: Sequence[str], flags: Sequence[str]) -> NoReturn:
        device = "\n".join(s for s in sources if "__global__" in s or "__device__" in s)
        try:
            found = check(device, self._target, [str(f) for f in flags]) if len(device) < MAX_SOURCE else Check(())
        except nvrtc.NvrtcMissingError as missing:
            self._recorder.note("advice", "device-code-unchecked", str(missing))
            found = Check(())
        if found.error is not None and found.certain:
            self._recorder.failures.append(found.error)
            raise found.error
        if found.error is not None:
            first = next(iter(found.error.errors()), None)
            why = first.message if first else found.error.log[:300]
            self._recorder.note("advice", "device-code-unchecked", f"the device code was not checked: {why}")
        for kernel in found.kernels:
            self._recorder.note("advice", "device-code", _sentence(kernel, self._target))
        self._recorder.block("native-code", NATIVE)
        raise Untraceable(NATIVE)


def _sentence(kernel: KernelProfile, target: Target) -> str:
    spill = f", {kernel.spill} bytes of register spills per thread" if kernel.spill else ""
    return (
        f"kernel `{kernel.name}` compiles for {target.arch}: {kernel.registers} registers per thread, "
        f"{kernel.shared} bytes of static shared memory{spill}"
    )


def _texts(sources: Any) -> list[str]:
    if sources is None:
        return []
    return [str(s) for s in sources] if isinstance(sources, list | tuple) else [str(sources)]
