"""CuPy's RawKernel and RawModule for a trace, over the same compiler and recorder as `cuda_core`.

What is here: RawKernel, RawModule, scalars under numpy's names, asarray and from_dlpack of torch tensors (as
arguments of a kernel), streams and devices that do nothing. CuPy's own arrays and functions are not: a use makes
the file untraceable, by name.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from verifier.device_facts import torch_properties
from verifier.plan import cuda_abi
from verifier.plan.cuda_core import three
from verifier.plan.cuda_image import Geometry
from verifier.plan.cuda_launch import CudaHost, Function, Module
from verifier.plan.cuda_options import passed_through

_SCALARS = (
    "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64",
)  # fmt: skip
_PROGRAM = "kernel.cu"


class Array:
    """cupy.ndarray over a torch tensor: it only names memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape, self.size, self.ndim = tuple(tensor.shape), tensor.numel(), tensor.dim()
        self.data = types.SimpleNamespace(ptr=tensor.data_ptr())


class _Stream:
    """cupy.cuda.Stream and ExternalStream: all streams are one."""

    ptr = 0

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...
    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_exc: object) -> None: ...
    def use(self) -> _Stream:
        return self

    def synchronize(self) -> None: ...


def _classes(host: CudaHost) -> dict[str, Any]:
    class RawKernel:
        """cupy.RawKernel. Compiled at its first use, as CuPy does."""

        def __init__(
            self, code: str, name: str, options: Sequence[str] = (), backend: str = "nvrtc",
            translate_cucomplex: bool = False, *, enable_cooperative_groups: bool = False, jitify: bool = False,
        ) -> None:  # fmt: skip
            self._module = RawModule(
                code=code, options=options, backend=backend, translate_cucomplex=translate_cucomplex,
                enable_cooperative_groups=enable_cooperative_groups, jitify=jitify,
            )  # fmt: skip
            self.name = name

        def compile(self, log_stream: object = None) -> None:
            self._function()

        def _function(self) -> Function:
            return self._module.find(self.name)

        @property
        def attributes(self) -> dict[str, int]:
            facts = self._function().facts
            return {"num_regs": facts.registers, "shared_size_bytes": facts.shared}

        @property
        def num_regs(self) -> int:
            return self._function().facts.registers

        @property
        def max_dynamic_shared_size_bytes(self) -> int:
            return self._function().shared_limit

        @max_dynamic_shared_size_bytes.setter
        def max_dynamic_shared_size_bytes(self, size: int) -> None:
            self._function().shared_limit = min(int(size), host.target.shared_per_block)

        def __call__(
            self, grid: Sequence[int], block: Sequence[int], args: Sequence[object], *, shared_mem: int = 0,
            stream: object = None,
        ) -> None:  # fmt: skip
            geometry = Geometry(
                three(grid, "grid"), three(block, "block"), shared=int(shared_mem),
                cooperative=self._module.cooperative,
            )  # fmt: skip
            host.launch(self._function(), geometry, [_argument(a) for a in args])

    class RawModule:
        """cupy.RawModule of source code."""

        def __init__(
            self, *, code: str | None = None, path: str | None = None, options: Sequence[str] = (),
            backend: str = "nvrtc", translate_cucomplex: bool = False, enable_cooperative_groups: bool = False,
            name_expressions: Sequence[str] | None = None, jitify: bool = False,
        ) -> None:  # fmt: skip
            if code is None or path is not None:
                raise host.refuse("prebuilt-code", "a RawModule from a file cannot be traced; give its source as code")
            if isinstance(options, str):
                raise TypeError("options must be a tuple of strings")
            self._code, self._options = code, passed_through(tuple(options), host.target)
            self._names = tuple(name_expressions or ())
            self.cooperative = bool(enable_cooperative_groups)
            self._compiled: Module | None = None

        def compile(self, log_stream: object = None) -> None:
            if self._compiled is None:
                self._compiled = host.compile(self._code, self._options, name=_PROGRAM, names=self._names)

        def find(self, name: str) -> Function:
            self.compile()
            assert self._compiled is not None
            try:
                return host.function(self._compiled, name)
            except cuda_abi.CubinError as missing:
                raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: named symbol not found: {missing}") from None

        def get_function(self, name: str) -> RawKernel:
            kernel = RawKernel(self._code, name)
            kernel._module = self
            return kernel

        def get_global(self, name: str) -> NoReturn:
            raise host.refuse("module-global", f"RawModule.get_global({name!r}) cannot be traced; pass a tensor")

    return {"RawKernel": RawKernel, "RawModule": RawModule}


def _argument(arg: object) -> object:
    """What a kernel is given: the address of an array."""
    return arg.data.ptr if isinstance(arg, Array) else arg


def _array(value: object, *_args: object, **_kwargs: object) -> Array:
    if isinstance(value, Array):
        return value
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"only torch tensors can become arrays in a trace, not {type(value).__name__}")
    return Array(value)


def modules(host: CudaHost) -> dict[str, types.ModuleType]:
    """The fake modules by name, for sys.modules."""
    props = torch_properties(host.target)

    def nothing(*_args: object, **_kwargs: object) -> None: ...

    def missing(attribute: str) -> NoReturn:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise host.refuse("cupy-array", f"cupy.{attribute} cannot be traced; use torch and pass tensor.data_ptr()")

    facts = {"multiProcessorCount": props.multi_processor_count}
    runtime = types.SimpleNamespace(deviceSynchronize=nothing, getDeviceProperties=lambda _device: facts)
    device = types.SimpleNamespace(
        id=0, compute_capability=str(host.target.capability), use=nothing, synchronize=nothing
    )
    cuda = types.ModuleType("cupy.cuda")
    _Stream.null = _Stream()  # type: ignore[attr-defined]
    cuda.__dict__.update(
        Stream=_Stream, ExternalStream=_Stream, Device=lambda _id=0: device, runtime=runtime,
        get_current_stream=lambda: _Stream(),
    )  # fmt: skip
    cupy = types.ModuleType("cupy", __doc__)
    cupy.__path__ = []
    scalars = {name: getattr(np, name) for name in _SCALARS}
    cupy.__dict__.update(
        **_classes(host), **scalars, asarray=_array, from_dlpack=_array, fromDlpack=_array, cuda=cuda,
        __version__="13.6.0", __getattr__=missing,
    )  # fmt: skip
    return {"cupy": cupy, "cupy.cuda": cuda}
