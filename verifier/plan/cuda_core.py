"""`cuda.core` for a trace: NVIDIA's Python library for compiling and launching CUDA C++, without a GPU.

The fakes have the names and the behaviour that cuda.core 1.2 documents (and `cuda.core.experimental` of the 0.x
releases), as far as a plan can hold it: Device, Stream, Event, Program, ObjectCode, Kernel, LaunchConfig, launch,
and of cuda.bindings the one call that opts in to more shared memory. What is left out (memory resources, graphs,
linking, tensor maps) makes the file untraceable, by name. They replace the real package during a trace, whether it
is installed or not.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple, NoReturn

from verifier.device_facts import torch_properties
from verifier.plan import cuda_abi, nvrtc
from verifier.plan.cuda_image import Geometry, Three
from verifier.plan.cuda_launch import CudaHost, Function, Module
from verifier.plan.cuda_options import UNSUPPORTED, ProgramOptions, command_line
from verifier.plan.textutil import shown

LEFT_OUT = (
    "Buffer", "MemoryResource", "DeviceMemoryResource", "LegacyPinnedMemoryResource", "PinnedMemoryResource",
    "ManagedMemoryResource", "VirtualMemoryResource", "Linker", "LinkerOptions", "GraphBuilder", "Graph",
    "GraphCompleteOptions", "GraphDebugPrintOptions", "TensorMapDescriptor", "Context", "ContextOptions",
)  # fmt: skip


class FunctionAttribute(IntEnum):
    """CUfunction_attribute of the driver API, the part that a candidate sets."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
    CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9
    CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14


class ComputeCapability(NamedTuple):
    major: int
    minor: int


class Event:
    """cuda.core.Event: everything is done at once; elapsed time is 1 ms."""

    is_done = True
    is_timing_enabled = True

    def sync(self) -> None: ...
    def close(self) -> None: ...
    def __sub__(self, _other: Event) -> float:
        return 1.0


class Stream:
    """cuda.core.Stream: all streams are one, in order."""

    def __init__(self, handle: int = 0) -> None:
        self.handle = handle

    @classmethod
    def from_handle(cls, handle: object) -> Stream:
        return cls(int(handle))  # type: ignore[call-overload]

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle

    def sync(self) -> None: ...
    def close(self) -> None: ...
    def wait(self, _event_or_stream: object) -> None: ...
    def record(self, event: Event | None = None, options: object = None) -> Event:
        return event or Event()


class Occupancy:
    """Kernel.occupancy, the query that a persistent grid needs."""

    def __init__(self, host: CudaHost, function: Function) -> None:
        self._host, self._function = host, function

    def max_active_blocks_per_multiprocessor(self, block_size: int, dynamic_shared_memory_size: int) -> int:
        return self._host.resident(self._function, int(block_size), int(dynamic_shared_memory_size))


class Kernel:
    """cuda.core.Kernel. `handle` stands for a CUkernel."""

    def __init__(self, host: CudaHost, function: Function) -> None:
        self._host, self._function = host, function
        self.handle = self

    @property
    def num_arguments(self) -> int:
        return len(self._function.params)

    @property
    def attributes(self) -> types.SimpleNamespace:
        facts = self._function.facts
        most = facts.max_threads or self._host.target.threads_per_block
        return types.SimpleNamespace(
            num_regs=facts.registers, shared_size_bytes=facts.shared, max_threads_per_block=most,
            max_dynamic_shared_size_bytes=self._function.shared_limit,
        )  # fmt: skip

    @property
    def occupancy(self) -> Occupancy:
        return Occupancy(self._host, self._function)


def three(value: object, what: str) -> Three:
    """A number or up to three of them, each at least 1. Raises ValueError as cuda.core does."""
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not 1 <= len(items) <= 3 or not all(hasattr(i, "__index__") and i.__index__() >= 1 for i in items):
        raise ValueError(f"{what} must be an int or up to three ints, each at least 1, not {value!r}")
    x, y, z = (*(i.__index__() for i in items), 1, 1)[:3]
    return x, y, z


class LaunchConfig:
    """cuda.core.LaunchConfig; with a cluster the grid counts clusters."""

    def __init__(
        self,
        grid: object = None,
        cluster: object = None,
        block: object = None,
        shmem_size: int | None = None,
        is_cooperative: bool = False,
        programmatic_stream_serialization: bool = False,
    ) -> None:
        self.grid, self.block = three(grid, "LaunchConfig.grid"), three(block, "LaunchConfig.block")
        self.cluster = None if cluster is None else three(cluster, "LaunchConfig.cluster")
        self.shmem_size = int(shmem_size or 0)
        self.is_cooperative = bool(is_cooperative)
        self.programmatic_stream_serialization = bool(programmatic_stream_serialization)

    def geometry(self) -> Geometry:
        cluster = self.cluster or (1, 1, 1)
        x, y, z = (g * c for g, c in zip(self.grid, cluster, strict=True))
        return Geometry(
            (x, y, z), self.block, cluster, self.shmem_size, self.is_cooperative, self.programmatic_stream_serialization
        )  # fmt: skip


class ExperimentalLaunchConfig(LaunchConfig):
    """The same in releases 0.x, where the cooperative flag had another name."""

    def __init__(self, *args: Any, cooperative_launch: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **{"is_cooperative": cooperative_launch, **kwargs})
        self.cooperative_launch = self.is_cooperative


def _classes(host: CudaHost) -> dict[str, Any]:
    """The names of `cuda.core` that are bound to one trace."""
    target, props = host.target, torch_properties(host.target)

    class ObjectCode:
        """cuda.core.ObjectCode, made by Program.compile."""

        code_type = "cubin"

        def __init__(self, module: Module, name: str) -> None:
            self._module, self.name = module, name
            self.code = module.compiled.cubin
            self.symbol_mapping = dict(module.compiled.lowered)

        def get_kernel(self, name: str | bytes) -> Kernel:
            text = name.decode() if isinstance(name, bytes) else str(name)
            try:
                return Kernel(host, host.function(self._module, text))
            except cuda_abi.CubinError:
                known = [*self.symbol_mapping, *map(shown, cuda_abi.kernels(self.code))]
                raise RuntimeError(
                    f"CUDA_ERROR_NOT_FOUND: named symbol not found: {text!r}; the program has {sorted(set(known))}; "
                    'declare a kernel extern "C" or name it in name_expressions'
                ) from None

        @staticmethod
        def _prebuilt(*_args: object, **_kwargs: object) -> NoReturn:
            raise host.refuse("prebuilt-code", "the file loads compiled code; a plan holds only what is compiled here")

        from_cubin = from_ptx = from_ltoir = from_fatbin = from_object = from_library = _prebuilt

    class Program:
        """cuda.core.Program for code_type "c++"."""

        backend = "NVRTC"

        def __init__(self, code: object, code_type: object, options: ProgramOptions | None = None) -> None:
            if str(code_type).lower() != "c++":
                raise host.refuse("code-type", f"a Program of code_type {code_type!r} cannot be traced; only 'c++'")
            if not isinstance(code, str):
                raise TypeError(f"c++ Program expects code as str, not {type(code).__name__}")
            self._code, self._options = code, options or ProgramOptions()

        def compile(
            self, target_type: object, name_expressions: Sequence[str] = (), logs: Any = None, *, cache: object = None
        ) -> ObjectCode:
            self._supported(str(target_type))
            program = self._options.name or "default_program"
            line = command_line(self._options, target)
            names = tuple(str(n) for n in name_expressions)
            module = host.compile(self._code, line, name=program, names=names)
            if logs is not None and module.compiled.log:
                logs.write(module.compiled.log)
            _note_headers(host, self._code, self._options)
            return ObjectCode(module, program)

        def _supported(self, target_type: str) -> None:
            wrong = [f"ProgramOptions({name}=...)" for name in UNSUPPORTED if getattr(self._options, name)]
            if target_type.lower() not in ("cubin", "ptx"):
                wrong.append(f"compile({target_type!r})")
            if wrong:
                raise host.refuse("unsupported-cuda-core", f"{wrong[0]} needs a link step; a plan holds only cubins")

        def close(self) -> None: ...

    class Device:
        """cuda.core.Device: the one device of the trace."""

        device_id = 0
        name = props.name
        arch = str(target.capability)
        compute_capability = ComputeCapability(props.major, props.minor)
        uuid = "00000000-0000-0000-0000-000000000000"
        default_stream = Stream()
        properties = types.SimpleNamespace(
            multiprocessor_count=target.sms, warp_size=target.warp_size, max_threads_per_block=target.threads_per_block,
            max_shared_memory_per_block_optin=target.shared_per_block, max_shared_memory_per_block=48 << 10,
            max_shared_memory_per_multiprocessor=target.shared_per_sm, l2_cache_size=target.l2_bytes,
            max_registers_per_block=target.registers_per_sm, max_registers_per_multiprocessor=target.registers_per_sm,
            max_threads_per_multiprocessor=target.threads_per_sm, compute_capability_major=props.major,
            compute_capability_minor=props.minor, cooperative_launch=True, cluster_launch=target.cluster_max > 1,
        )  # fmt: skip

        def __init__(self, device_id: object = None) -> None:
            if device_id not in (None, 0) and not isinstance(device_id, Device):
                raise ValueError(f"device_id must be 0, not {device_id!r}")

        def set_current(self, _context: object = None) -> None: ...
        def sync(self) -> None: ...
        def create_event(self, options: object = None) -> Event:
            return Event()

        def create_stream(self, obj: Any = None, options: object = None) -> Stream:
            if obj is None:
                host.recorder.note(
                    "advice", "own-stream", "a stream of its own does not wait for torch's work; wrap "
                    "torch.cuda.current_stream() instead"
                )  # fmt: skip
                return Stream(1)
            return Stream(obj.__cuda_stream__()[1])

        def allocate(self, *_args: object, **_kwargs: object) -> NoReturn:
            raise host.refuse("unsupported-cuda-core", "Device.allocate cannot be traced; allocate with torch.empty")

        def __int__(self) -> int:
            return 0

    def launch(stream: object, config: LaunchConfig, kernel: Kernel, *args: object) -> None:
        if not hasattr(stream, "__cuda_stream__"):
            raise TypeError(f"launch expects a Stream or an object with __cuda_stream__, not {type(stream).__name__}")
        host.launch(kernel._function, config.geometry(), args)

    return {
        "Device": Device, "Program": Program, "ProgramOptions": ProgramOptions, "ObjectCode": ObjectCode,
        "Kernel": Kernel, "LaunchConfig": LaunchConfig, "launch": launch, "Stream": Stream, "Event": Event,
        "EventOptions": types.SimpleNamespace, "StreamOptions": types.SimpleNamespace, "__version__": "1.2.2",
    }  # fmt: skip


def _note_headers(host: CudaHost, code: str, options: ProgramOptions) -> None:
    """cuda.core adds no include folder of its own; here the headers are always found."""
    found = [line.split("<")[1].split(">")[0] for line in code.splitlines() if line.strip().startswith("#include <")]
    if found and options.include_path is None and not options.use_bundled_headers:
        host.recorder.note(
            "warning", "include-path", f"<{found[0]}> is found here, but cuda.core itself adds no include folder: pass "
            "ProgramOptions(include_path=...) with the toolkit's include folder and its cccl folder"
        )  # fmt: skip


def _driver(host: CudaHost) -> dict[str, Any]:
    """The part of cuda.bindings.driver that goes with a kernel."""

    def set_attribute(attribute: object, value: int, kernel: Any, _device: object = 0) -> tuple[int]:
        function = kernel._function
        if int(attribute) == FunctionAttribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:  # type: ignore[call-overload]
            if not 0 <= int(value) <= host.target.shared_per_block - function.facts.shared:
                return (1,)
            function.shared_limit = int(value)
        elif int(attribute) == FunctionAttribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:  # type: ignore[call-overload]
            function.wide_cluster = bool(value)
        return (0,)

    def set_function_attribute(kernel: Any, attribute: object, value: int) -> tuple[int]:
        return set_attribute(attribute, value, kernel)

    return {
        "CUfunction_attribute": FunctionAttribute, "cuKernelSetAttribute": set_attribute,
        "cuFuncSetAttribute": set_function_attribute, "CUdevice": int, "CUstream": int,
        "CUresult": IntEnum("CUresult", {"CUDA_SUCCESS": 0, "CUDA_ERROR_INVALID_VALUE": 1}),
    }  # fmt: skip


def modules(host: CudaHost) -> dict[str, types.ModuleType]:
    """The fake modules by name, for sys.modules."""
    core = _classes(host)
    experimental = core | {"LaunchConfig": ExperimentalLaunchConfig}
    folder = next((str(f) for f in nvrtc.include_folders()), None)
    finder = {
        "find_nvidia_header_directory": lambda _name: folder,
        "locate_nvidia_header_directory": lambda _name: types.SimpleNamespace(abs_path=folder),
    }
    contents: dict[str, dict[str, Any]] = {
        "cuda": {}, "cuda.core": core, "cuda.core.experimental": experimental, "cuda.bindings": {},
        "cuda.bindings.driver": _driver(host), "cuda.pathfinder": finder,
    }  # fmt: skip
    made = {name: _module(host, name, content) for name, content in contents.items()}
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    return made


def _module(host: CudaHost, name: str, content: dict[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name, __doc__)
    module.__path__ = []
    module.__dict__.update(content)

    def missing(attribute: str) -> NoReturn:
        if attribute in LEFT_OUT:
            raise host.refuse("unsupported-cuda-core", f"{name}.{attribute} cannot be traced")
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

    if name.startswith("cuda.core"):
        module.__dict__["__getattr__"] = missing
    return module
