"""A world with one CUDA device and no GPU: `torch.cuda` answers as the target would, tensors on `cuda:0` are
fake.

`install` changes torch in this process for good; it runs in a forked child that dies after its job. What it
does not imitate: more than one device, memory that runs out, events that take time (all take equally long).
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch._subclasses.fake_tensor as fake_tensor
import torch.cuda.jiterator
import torch.utils.cpp_extension
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from verifier.device_facts import torch_properties
from verifier.plan import guard, ops, seeds, wrappers
from verifier.plan.record import Recorder, Untraceable
from verifier.target import Target

CUDA0 = torch.device("cuda", 0)


class FakeEvent:
    """torch.cuda.Event: never waits."""

    milliseconds = 1.0

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        self.cuda_event = 0

    def record(self, *_args: object) -> None: ...
    def wait(self, *_args: object) -> None: ...
    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, _end: object) -> float:
        return self.milliseconds


class FakeStream:
    """torch.cuda.Stream: all streams are one."""

    cuda_stream = 0
    stream_id = 0
    device_index = 0
    device_type = 1
    priority = 0
    device = CUDA0

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...
    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *_exc: object) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, *_args: object) -> None: ...
    def wait_event(self, *_args: object) -> None: ...
    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        return event or FakeEvent()

    def query(self) -> bool:
        return True

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.cuda_stream


class _Nothing(contextlib.ContextDecorator):
    """A context that does nothing: torch.cuda.device, stream, device_of."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        self.idx = 0

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_exc: object) -> None: ...


def _graph_classes(recorder: Recorder) -> tuple[type, type]:
    """Fakes of CUDAGraph and torch.cuda.graph that are seen through: a replay appends the captured steps."""

    class FakeGraph:
        def __init__(self, *_args: object, **_kwargs: object) -> None:
            self._steps: list[Any] = []
            self._mark = 0

        def capture_begin(self, *_args: object, **_kwargs: object) -> None:
            self._mark = recorder.mark()

        def capture_end(self) -> None:
            self._steps = recorder.cut(self._mark)

        def replay(self) -> None:
            recorder.extend(self._steps)

        def reset(self) -> None:
            self._steps = []

        def pool(self) -> tuple[int, int]:
            return (0, 0)

    class fake_graph(_Nothing):
        def __init__(self, cuda_graph: FakeGraph, *_args: object, **_kwargs: object) -> None:
            super().__init__()
            self.cuda_graph = cuda_graph

        def __enter__(self) -> fake_graph:
            self.cuda_graph.capture_begin()
            return self

        def __exit__(self, *_exc: object) -> None:
            self.cuda_graph.capture_end()

    return FakeGraph, fake_graph


def _cuda_answers(target: Target, recorder: Recorder) -> dict[str, Any]:
    disguise = recorder.disguise
    props = torch_properties(target)
    props.uuid = disguise.uuid
    FakeStream.cuda_stream, FakeEvent.milliseconds = disguise.stream, disguise.milliseconds
    capability = (props.major, props.minor)
    graph, graph_context = _graph_classes(recorder)
    zero = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    nothing = ("init", "_lazy_init", "set_device", "synchronize", "empty_cache", "ipc_collect",
               "reset_peak_memory_stats", "set_stream", "set_per_process_memory_fraction",
               "reset_max_memory_allocated", "cudart", "nvtx")  # fmt: skip
    answers: dict[str, Any] = {name: _silent for name in nothing if name != "nvtx"}
    answers |= {name: lambda *_a, **_k: disguise.used for name in zero}
    answers |= {
        "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "get_device_properties": lambda *_a: props,
        "get_device_capability": lambda *_a: capability, "get_device_name": lambda *_a: props.name,
        "current_stream": lambda *_a: FakeStream(), "default_stream": lambda *_a: FakeStream(),
        "stream": _Nothing, "device": _Nothing, "device_of": _Nothing, "Event": FakeEvent,
        "Stream": FakeStream,
        "ExternalStream": FakeStream,
        "mem_get_info": lambda *_a: (target.total_memory - disguise.used, target.total_memory),
        "is_bf16_supported": lambda *_a, **_k: True, "CUDAGraph": graph, "graph": graph_context,
        "is_current_stream_capturing": lambda: False, "graph_pool_handle": lambda: (0, 0),
        "make_graphed_callables": lambda callables, *_a, **_k: callables,
        "get_arch_list": lambda: [f"sm_{target.capability}"], "_exchange_device": lambda _d: 0,
        "_maybe_exchange_device": lambda _d: 0,
    }  # fmt: skip
    return answers


def _replace(owner: object, **attributes: Any) -> None:
    """Puts attributes on a module or class of torch."""
    for name, value in attributes.items():
        setattr(owner, name, value)


def _silent(*_args: object, **_kwargs: object) -> None: ...


def _apply(self: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """nn.Module.to/.cuda/.half: puts new tensors in place; torch would swap the fake ones and fail."""
    if recurse:
        for child in self.children():
            child._apply(fn)  # type: ignore[no-untyped-call]
    moved: dict[int, torch.nn.Parameter] = {}
    for name, p in self._parameters.items():
        if p is not None:
            with torch.no_grad():
                moved.setdefault(id(p), torch.nn.Parameter(fn(p), p.requires_grad and p.is_floating_point()))
            self._parameters[name] = moved[id(p)]
    for name, b in self._buffers.items():
        if b is not None:
            self._buffers[name] = fn(b)
    return self


def fake_mode() -> FakeTensorMode:
    """The mode under which the candidate runs; real host tensors may enter as constants."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def install(target: Target, recorder: Recorder) -> None:
    """Puts the fake device into torch. `recorder` answers addresses and refuses value reads."""
    guard.install()
    _replace(torch.cuda, **_cuda_answers(target, recorder))
    torch.version.cuda = torch.version.cuda or "13.0"
    _replace(FakeTensorMode, avoid_device_init=property(lambda _self: True))
    if hasattr(fake_tensor, "init_gpu_context"):
        _replace(fake_tensor, init_gpu_context=_silent)
    _replace(torch.nn.Module, _apply=_apply)
    _answer_for_libraries()
    wrappers.install(recorder.disguise.stream)
    seeds.install(recorder)
    _patch_tensor(recorder)
    _refuse_native(recorder)
    _see_through_compilers(recorder)
    _refuse_engines(recorder)
    _keep_whole()
    recorder.custom.watch()


def _answer_for_libraries() -> None:
    """What a CUDA build of torch would ask a device: which convolution to run, whether to pack weights for cuDNN. The
    layout of a convolution's result is `shapes.layout`'s. Weights of recurrent layers stay apart: cuDNN copies them
    together at each call, which gives the same bits (`experiments/results/replay_on_gpus.md`) in the same time.
    """
    c: Any = torch._C
    _replace(
        c,
        _select_conv_backend=lambda *_args, **_kwargs: c._ConvBackend.Cudnn,
        _conv_determine_backend_memory_format=lambda *_args: torch.contiguous_format,
    )
    _replace(torch.backends.cudnn, is_acceptable=lambda _tensor: False)


def _patch_tensor(recorder: Recorder) -> None:
    def data_ptr(self: torch.Tensor) -> int:
        recorder.storage(self)
        return recorder.space.address(self, "setup")

    def numpy(_self: torch.Tensor, *_args: object, **_kwargs: object) -> None:
        raise recorder.value_read("`.numpy()`")

    def array(_self: torch.Tensor, *_args: object, **_kwargs: object) -> None:
        raise recorder.value_read("conversion to a numpy array")

    def deepcopy(self: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        """A clone through the dispatcher; torch would copy the storage behind the recorder's back."""
        if id(self) not in memo:
            with torch.no_grad():
                made = self.detach().clone()
            keep = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if keep else made
        made_once: torch.Tensor = memo[id(self)]
        return made_once

    def lazy(*_args: object, **_kwargs: object) -> None:
        recorder.block("lazy-module", "the file makes a lazy parameter, whose memory a trace cannot follow")
        raise Untraceable("lazy")

    _replace(torch.nn.UninitializedParameter, __new__=lazy)
    _replace(torch.nn.UninitializedBuffer, __new__=lazy)
    _replace(FakeTensor, __deepcopy__=deepcopy, record_stream=_silent, is_pinned=lambda _self, *_args: False)
    _replace(FakeTensor, data_ptr=data_ptr, numpy=numpy, __array__=array)


def _refuse_native(recorder: Recorder) -> None:
    """C++ and CUDA extensions are native host code, which no plan can hold."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        recorder.block("native-code", "the file builds a C++ extension; native host code cannot be traced")
        raise Untraceable("native code")

    _replace(torch.utils.cpp_extension, load=refuse, load_inline=refuse)


def _see_through_compilers(recorder: Recorder) -> None:
    """torch.compile and TorchScript give back what they are given: the plan holds the eager operators."""

    def eager(what: Any = None, *_args: object, **_kwargs: object) -> Any:
        recorder.note("warning", "compiled-part", "the file compiles a part with torch.compile or TorchScript; "
                      "the plan runs its operators one by one")  # fmt: skip
        return eager if what is None else what

    def compile_module(_self: torch.nn.Module, *_args: object, **_kwargs: object) -> None:
        eager()

    _replace(torch, compile=eager)
    _replace(torch.nn.Module, compile=compile_module)
    _replace(torch.jit, script=eager, trace=eager, freeze=eager, optimize_for_inference=eager)


def _refuse_engines(recorder: Recorder) -> None:
    """What computes where no operator is seen: the autograd engine, higher-order operators, CUDA text in strings."""

    def backward(*_args: object, **_kwargs: object) -> None:
        recorder.block("autograd-engine", "the file runs a backward pass; a trace follows forward operators only")
        raise Untraceable("autograd")

    def jiterator(*_args: object, **_kwargs: object) -> None:
        recorder.block("jiterator", "torch.cuda.jiterator compiles CUDA text inside PyTorch, which a trace cannot see")
        raise Untraceable("jiterator")

    dispatch: Any = HigherOrderOperator.dispatch

    def higher_order(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return dispatch(self, *args, **kwargs)
        except NotImplementedError as unknown:
            recorder.block("higher-order", f"`{self.name()}` is no operator that a plan can hold")
            raise Untraceable(self.name()) from unknown

    _replace(torch.autograd, _engine_run_backward=backward)
    _replace(torch.autograd.graph, _engine_run_backward=backward)
    _replace(torch.cuda.jiterator, _create_jit_fn=jiterator, _create_multi_output_jit_fn=jiterator)
    _replace(HigherOrderOperator, dispatch=higher_order)


_library: list[Any] = []


def _keep_whole() -> None:
    """Registers placeholders for composite operators, so that they reach the recorder in one piece."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name in ops.WHOLE:
        library.impl(name, _never, "CUDA")
    _library.append(library)


def _never(*_args: object, **_kwargs: object) -> None:
    raise RuntimeError("a fake CUDA tensor reached a real kernel")
