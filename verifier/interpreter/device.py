"""Makes CPU tensors claim to be on `cuda:0` of the target, as in the trace, for a candidate under the interpreter.

`CpuAsCuda` is a torch function mode: `.device`, `.is_cuda` and `.cuda()` answer as on a GPU, every request
for a CUDA device becomes one for the CPU, and memory that PyTorch would leave uninitialised is poisoned (NaN,
or the largest integer). `patch` replaces the parts of `torch.cuda` and of Triton's driver that a host
function may ask.

Not covered: memory that C++ allocates inside a composite operator is not poisoned; streams and events do
nothing. `patch` changes torch in this process for good: call it only in a process that will be thrown away.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from verifier.device_facts import torch_properties, triton_properties
from verifier.plan import wrappers
from verifier.target import Target

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, *args: Any) -> None: ...
    def wait(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return 1.0


class _Stream:
    cuda_stream = 0
    device = CUDA
    device_index = 0
    stream_id = 0
    priority = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, *args: Any) -> None: ...
    def wait_event(self, *args: Any) -> None: ...
    def record_event(self, *args: Any) -> _Event:
        return _Event()

    def query(self) -> bool:
        return True


class _Device:
    """`torch.cuda.device(...)`: there is only one."""

    def __init__(self, *args: Any) -> None:
        self.idx = 0

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *args: Any) -> None: ...


class _Graph:
    """`torch.cuda.CUDAGraph`: what is captured runs at once, as a warm-up would, and again with every replay.

    A result of a torch function keeps its memory: a replay copies the new values into it.
    """

    current: _Graph | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.steps: list[Callable[[], Any]] = []

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        self.steps, _Graph.current = [], self

    def capture_end(self) -> None:
        _Graph.current = None

    def replay(self) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for step in self.steps:
                step()

    def reset(self) -> None:
        self.steps = []

    def pool(self) -> tuple[int, int]:
        return (0, 0)


class _Capture(contextlib.AbstractContextManager[None]):
    """`torch.cuda.graph(g)`."""

    def __init__(self, cuda_graph: _Graph, *args: Any, **kwargs: Any) -> None:
        self.graph = cuda_graph

    def __enter__(self) -> None:
        self.graph.capture_begin()

    def __exit__(self, *args: Any) -> None:
        self.graph.capture_end()


def captured(step: Callable[[], Any]) -> None:
    """Adds a step to the CUDA graph that is being captured, if any."""
    if _Graph.current is not None:
        _Graph.current.steps.append(step)


def _captured_call(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    tensors = [t for t in (result if isinstance(result, tuple | list) else (result,)) if isinstance(t, torch.Tensor)]

    def again() -> None:
        made = func(*args, **kwargs)
        new = [t for t in (made if isinstance(made, tuple | list) else (made,)) if isinstance(t, torch.Tensor)]
        for old, value in zip(tensors, new, strict=True):
            if old.data_ptr() != value.data_ptr():
                old.copy_(value)

    if tensors:
        captured(again)


def patch(target: Target) -> None:
    """Answers of `torch.cuda` and of Triton's driver in this process."""
    properties = torch_properties(target)
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "init": None, "_lazy_init": None, "device_count": 1,
        "current_device": 0, "set_device": None, "get_device_properties": properties,
        "get_device_capability": (properties.major, properties.minor), "get_device_name": properties.name,
        "synchronize": None,
        "empty_cache": None, "mem_get_info": (properties.total_memory,) * 2, "is_bf16_supported": True,
        "manual_seed": None, "manual_seed_all": None, "seed_all": None, "max_memory_allocated": 0,
        "memory_allocated": 0, "memory_reserved": 0, "max_memory_reserved": 0, "reset_peak_memory_stats":
        None, "is_current_stream_capturing": False, "ipc_collect": None, "_exchange_device": 0,
        "_maybe_exchange_device": 0, "set_stream": None, "cudart": None, "reset_max_memory_allocated": None,
        "set_per_process_memory_fraction": None, "graph_pool_handle": (0, 0),
        "get_arch_list": [f"sm_{target.capability}"],
    }  # fmt: skip
    for name, value in answers.items():
        setattr(torch.cuda, name, _constant(value))
    classes = {
        "CUDAGraph": _Graph, "graph": _Capture, "Event": _Event, "Stream": _Stream, "device": _Device,
        "device_of": _Device, "ExternalStream": _Stream,
    }  # fmt: skip
    for name, made in classes.items():
        setattr(torch.cuda, name, made)
    for name in ("current_stream", "default_stream"):
        setattr(torch.cuda, name, lambda device=None: _Stream())
    setattr(torch.cuda, "stream", _constant(contextlib.nullcontext()))  # noqa: B010
    setattr(torch.Tensor, "record_stream", _constant(None))  # noqa: B010 - it would refuse a stand-in for a stream
    torch.version.cuda = "13.0"
    wrappers.install()
    _patch_driver(target)


def hide_interpreter() -> None:
    """Takes `TRITON_INTERPRET` out of the environment; Triton keeps interpreting."""
    import os

    import triton

    triton.knobs.runtime.interpret = True
    os.environ.pop("TRITON_INTERPRET", None)


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _patch_driver(target: Target) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    stub = SimpleNamespace(
        utils=SimpleNamespace(get_device_properties=_constant(triton_properties(target))),
        get_current_target=_constant(GPUTarget("cuda", target.capability, target.warp_size)),
        get_current_device=_constant(0),
        set_current_device=_constant(None),
        get_current_stream=_constant(0),
        get_device_capability=_constant(divmod(target.capability, 10)),
        get_active_torch_device=_constant(CUDA),
        get_device_interface=_constant(torch.cuda),
        get_benchmarker=_constant(bench_once),
    )
    driver.set_active(stub)
    triton.testing.do_bench = triton.testing.do_bench_cudagraph = bench_once


def bench_once(call: Callable[[], Any], *_args: Any, quantiles: Any = None, **_kwargs: Any) -> Any:
    """Stands for triton.testing.do_bench, as in a trace: one call, a made-up time in milliseconds."""
    call()
    return [1.0] * len(quantiles) if quantiles else 1.0


def _getter(name: str) -> Any:
    """What a function mode is given for a property of a tensor."""
    return getattr(torch.Tensor, name).__get__


_DEVICE, _IS_CUDA, _IS_CPU = (_getter(name) for name in ("device", "is_cuda", "is_cpu"))
_UNINITIALISED = frozenset(
    {torch.empty, torch.empty_like, torch.empty_strided, torch.empty_permuted, torch.Tensor.new_empty,
     torch.Tensor.new_empty_strided, torch.Tensor.new}
)  # fmt: skip


class CpuAsCuda(TorchFunctionMode):
    """While active, CPU tensors answer as CUDA ones; the copy that `.cpu()` makes does, too.

    `watch(func, args, kwargs, result)` hears of every call after it ran.
    """

    def __init__(self, watch: Callable[..., None] | None = None) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        result = self._answer(func, args, kwargs)
        if self._watch is not None:
            self._watch(func, args, kwargs, result)
        return result

    def _answer(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func == _DEVICE:
            return CUDA
        if func == _IS_CUDA:
            return True
        if func == _IS_CPU:
            return False
        if func is torch.Tensor.get_device:
            return 0
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.cpu:
            return args[0].clone()
        if func is torch.Tensor.pin_memory:
            return args[0]
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        args = tuple(CPU if isinstance(a, str | torch.device) and _is_cuda(a) else a for a in args)
        result = func(*args, **kwargs)
        if func in _UNINITIALISED and isinstance(result, torch.Tensor):
            poison(result)
        _captured_call(func, args, kwargs, result)
        return result


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


def poison(tensor: torch.Tensor) -> None:
    """Fills with NaN, the largest integer or True: what a kernel leaves unwritten shows up."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        if tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1:
            tensor.view(torch.uint8).fill_(0x7F)
        elif tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            tensor.fill_(math.nan)
        elif tensor.dtype == torch.bool:
            tensor.fill_(True)
        else:
            tensor.fill_(torch.iinfo(tensor.dtype).max)
