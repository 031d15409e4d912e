"""Kernels of CUDA C++ in a recording: compiled by NVRTC, checked against the target and the cubin, kept as steps.

One image is a kernel together with its launch geometry (block, cluster, dynamic shared memory), so that its
occupancy is a fact of the image, as it is for Triton. The front ends `cuda_core` and `cupy_raw` translate their
library's calls into `Module`, `Function` and `Geometry`.
"""

from __future__ import annotations

import hashlib
import linecache
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verifier.plan import cuda_abi, cuda_image, cuda_values, elf, nvrtc, rebuild
from verifier.plan.cuda_image import DEFAULT_SHARED, Geometry
from verifier.plan.driver import Kernels, LaunchLimitError
from verifier.plan.ptx import PtxParam
from verifier.plan.record import Recorder, Step, Untraceable
from verifier.plan.textutil import shown
from verifier.target import Target

MAX_NAME = 1000


@dataclass(slots=True)
class Module:
    """One compiled program."""

    compiled: nvrtc.Compiled
    program: bytes
    """What the compiler was given, as `rebuild.note` writes it."""
    functions: dict[str, Function] = field(default_factory=dict)


@dataclass(slots=True)
class Function:
    """One kernel of a module. `shared_limit` is what the candidate opted in to, bytes."""

    module: Module
    name: str
    facts: cuda_abi.KernelFacts
    params: tuple[PtxParam, ...]
    shared_limit: int = DEFAULT_SHARED
    wide_cluster: bool = False


class CudaHost:
    """What the fakes of cuda.core and CuPy share: compiler, checks and recorder of one trace."""

    def __init__(
        self,
        target: Target,
        recorder: Recorder,
        kernels: Kernels,
        compiler: Callable[[], nvrtc.Nvrtc] = nvrtc.load,
    ) -> None:
        self.target, self.recorder = target, recorder
        self._kernels, self._compiler = kernels, compiler
        self._compiled: dict[str, Module] = {}

    # -- compiling ---------------------------------------------------------------------------------

    def compile(
        self, source: str, options: Sequence[str], *, name: str = "default_program", names: Sequence[str] = ()
    ) -> Module:
        """The program's module, from this trace's cache when it was compiled before. Raises CudaCompileError."""
        key = repr((source, tuple(options), name, tuple(names)))
        if key not in self._compiled:
            try:
                made = self._nvrtc().compile(source, name=name, options=options, names=names)
            except nvrtc.CudaCompileError as failure:
                self.recorder.failures.append(failure)
                raise
            self._compiled[key] = Module(made, rebuild.note(source, name, options, names))
        return self._compiled[key]

    def _nvrtc(self) -> nvrtc.Nvrtc:
        try:
            return self._compiler()
        except nvrtc.NvrtcMissingError as missing:
            self.recorder.block("no-nvrtc", str(missing))
            raise Untraceable(str(missing)) from None

    def refuse(self, code: str, message: str) -> Untraceable:
        """Notes that the plan cannot hold what the file does; the caller raises what comes back."""
        self.recorder.block(code, message)
        return Untraceable(message)

    def function(self, module: Module, name: str) -> Function:
        """A kernel by name expression or symbol. Raises CubinError where there is none."""
        symbol = module.compiled.lowered.get(name, name)
        if symbol not in module.functions:
            facts = cuda_abi.read_facts(module.compiled.cubin, symbol)
            if len(symbol) > MAX_NAME:
                raise self.refuse("long-name", f"the kernel's symbol has {len(symbol)} characters")
            params = cuda_abi.parameters(module.compiled.cubin, module.compiled.ptx, symbol)
            module.functions[symbol] = Function(module, symbol, facts, params)
        return module.functions[symbol]

    def resident(self, function: Function, threads: int, shared: int) -> int:
        """Blocks of `threads` threads and `shared` dynamic bytes that one multiprocessor holds."""
        return cuda_image.resident_blocks(self.target, function.facts, threads, shared)

    # -- launching ---------------------------------------------------------------------------------

    def launch(self, function: Function, geometry: Geometry, args: Sequence[object]) -> None:
        """Checks one launch and appends its step. Raises LaunchLimitError or TypeError as the library would."""
        self._check_limits(function, geometry)
        if len(args) != len(function.params):
            raise TypeError(
                f"kernel `{shown(function.name)}` takes {len(function.params)} parameters, {len(args)} given"
            )
        encoded = [self._argument(function, i, arg) for i, arg in enumerate(args)]
        self.recorder.append(self._step(self._image(function, geometry), function, geometry, encoded))

    def _check_limits(self, function: Function, geometry: Geometry) -> None:
        name, facts = f"kernel `{shown(function.name)}`", function.facts
        refused = (
            cuda_image.refusal(self.target, facts, geometry, name)
            or cuda_image.not_opted_in(facts, geometry, name, function.shared_limit, function.wide_cluster)
            or cuda_image.refusal_of_grid(self.target, facts, geometry, name)
        )
        if refused:
            raise LaunchLimitError(refused)

    def _argument(self, function: Function, position: int, arg: object) -> dict[str, Any]:
        param = function.params[position]
        where = f"argument {position} of kernel `{shown(function.name)}`"
        base = {"name": f"p{position}", "type": param.type}
        value = cuda_values.host_value(arg)
        if value is None:
            raise TypeError(f"{where}: the argument is of unsupported type {type(arg).__name__}")
        if param.type == "bytes":
            raise self.refuse(
                "struct-parameter", f"{where} is a struct of {param.size} bytes; pass scalars and pointers"
            )
        try:
            number = cuda_values.fit(value, param)
        except TypeError as wrong:
            raise TypeError(f"{where}: {wrong}") from None
        if param.type in ("fp32", "fp64"):
            finite = math.isfinite(number)
            return {**base, "t": "float", "v": float(number) if finite else str(float(number))}
        if param.size == 8 and (param.type == "*void" or self.recorder.space.contains(int(number))):
            return {**base, **self._pointer(int(number), where)}
        return {**base, "t": "int", "v": int(number)}

    def _pointer(self, address: int, where: str) -> dict[str, Any]:
        if address == 0:
            return {"t": "null"}
        found = self.recorder.space.resolve(address)
        if found is None:
            what = "points outside every tensor" if self.recorder.space.contains(address) else "points to no tensor"
            raise ValueError(f"{where}: {address:#x} {what}; pass tensor.data_ptr() of a CUDA tensor")
        record, offset = found
        if record.device != "cuda":
            raise ValueError(f"{where}: it points to host memory; move the tensor to the device first")
        return {"t": "pointer", "storage": record.id, "offset": offset, "value": None}

    def _image(self, function: Function, geometry: Geometry) -> str:
        """Key of the image, made on its first launch."""
        compiled = function.module.compiled
        cubin = hashlib.sha256(compiled.cubin).hexdigest()
        text = compiled.ptx.encode()
        ptx = hashlib.sha256(text).hexdigest()
        key = geometry.key(cubin, function.name)
        if key not in self._kernels.images:
            source = hashlib.sha256(function.module.program).hexdigest()
            files = {f"{cubin}.cubin": compiled.cubin, f"{ptx}.ptx": text, f"{source}.cu": function.module.program}
            self._kernels.blobs |= files
            none = {"size": 0, "align": 1}
            self._kernels.images[key] = {
                "language": "cuda", "name": function.name, "cubin": cubin, "ttir": None, "ptx": ptx,
                "source": source,
                "block": list(geometry.block), "cluster": list(geometry.cluster),
                "num_warps": -(-math.prod(geometry.block) // self.target.warp_size), "num_stages": 0, "num_ctas": 1,
                "shared": geometry.shared, "global_bytes": elf.global_bytes(compiled.cubin),
                "global_scratch": none, "profile_scratch": none, "cooperative": geometry.cooperative,
                "pdl": geometry.dependent, "tensor_descriptors": [], "line": self._line(function.name),
                "params": [{"name": f"p{i}", "type": p.type, "size": p.size, "access": p.access}
                           for i, p in enumerate(function.params)],
            }  # fmt: skip
        return key

    def _line(self, symbol: str) -> int | None:
        """Line of the kernel's definition in the candidate's file, None when it is not written out there."""
        lines = linecache.cache.get(self.recorder.filename)
        text = "".join(lines[2]) if lines is not None and len(lines) == 4 else ""
        found = re.search(rf"__global__[^;{{}}]*?\b{re.escape(shown(symbol))}\s*\(", text)
        return text.count("\n", 0, found.end()) + 1 if found else None

    def _step(self, key: str, function: Function, geometry: Geometry, encoded: Sequence[dict[str, Any]]) -> Step:
        loaded, stored = touched(encoded, [p.access for p in function.params])
        step = Step({}, self.recorder.phase)
        step.reads, step.writes, step.kills = loaded, stored, stored - loaded
        alternative = {
            "kernel": key, "grid": list(geometry.grid), "args": list(encoded), "config": "", "before": [],
        }  # fmt: skip
        step.body = {
            "kind": "launch", "alternatives": [alternative], "line": self.recorder.line(), "autotuned": False,
            "reset_to_zero": [], "restore_value": [],
        }  # fmt: skip
        return step


def touched(args: Sequence[Mapping[str, Any]], accesses: Sequence[str]) -> tuple[set[int], set[int]]:
    """Storages that a launch may read and may write."""
    pairs = [(a["storage"], access) for a, access in zip(args, accesses, strict=True) if a["t"] == "pointer"]
    loaded = {storage for storage, access in pairs if access in ("load", "both")}
    return loaded, {storage for storage, access in pairs if access in ("store", "both")}
