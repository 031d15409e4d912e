"""The trace of a baseline: `torch.compile` works, and what the compiled code does becomes the plan.

`baseline_job` is `trace_job` for trusted files. A candidate's `torch.compile` is seen through; a baseline's is run:
Dynamo and Inductor compile for the fake device, and the module that Inductor writes is called under the recorder. So
its kernels are launches of the plan and its library calls are steps, like those of a file written by hand.

No clock is there, so Inductor cannot autotune: templates and kernels get the configuration that its heuristics put
first. What Inductor wrote where it could (`verifier.gpu.tune`) is given as `tuned`: its modules stand for those that
would be written here.

Inductor's own interfaces are not public; this works with those of torch 2.11 to 2.13. `fullgraph` is always on: what
runs between two graphs would not be recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only
from triton import knobs

from verifier.plan import trace, wrappers
from verifier.plan.record import Untraceable

_compile = torch.compile
"""PyTorch's own, before a trace puts another in its place."""
_INTERFACE = (
    "current_device", "set_device", "device_count", "stream", "current_stream", "set_stream", "synchronize",
    "get_device_properties", "memory_allocated", "is_bf16_supported",
)  # fmt: skip


def baseline_job(
    payload: dict[str, Any], blobs: dict[str, bytes], workdir: Path
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """`trace_job` with a `torch.compile` that compiles. `payload` may have `tuned`: {"modules": [text of each module
    that Inductor wrote, in the order of compilation], "choices": {kernel: {"kwargs", "num_warps", "num_stages"}}}.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(workdir) / "inductor")
    os.environ["TRITON_PTXAS_PATH"] = str(knobs.nvidia.ptxas.path)  # Inductor would take another one
    return trace.trace(payload, workdir, lambda session: _Compiler(session, payload.get("tuned")).install())


class _Compiler:
    """`torch.compile` of one trace."""

    def __init__(self, session: trace.Session, tuned: Mapping[str, Any] | None) -> None:
        self._recorder, self._fake = session.recorder, session.fake
        self._modules = None if tuned is None else list(tuned["modules"])
        self._choices: Mapping[str, Any] = {} if tuned is None else tuned["choices"]

    def install(self) -> None:
        """Changes torch in this process for good. Loads Inductor, which takes a second or two."""
        _answer_interface()
        _settle_config()
        _fold_on_host()
        self._pick_configurations()
        _stand_ins_in_modules()
        module: Any = torch
        module.compile = self.compile

    def compile(self, model: Any = None, **options: Any) -> Any:
        """Stands for torch.compile; also as a decorator. What needs a clock (mode, options) is left out."""
        if model is None:
            return lambda given: self.compile(given, **options)
        made: Any = _compile(model, backend=self._backend, fullgraph=True, dynamic=options.get("dynamic", False))

        def call(*args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                return made(*args, **kwargs)

        return call

    def _backend(self, graph: Any, inputs: Sequence[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        inner: Any = self._inner
        return compile_fx(graph, inputs, inner_compile=inner)

    def _inner(self, graph: Any, inputs: Sequence[Any], **options: Any) -> Callable[[list[Any]], Any]:
        """What Inductor makes of one graph, as a function that runs under the recorder."""
        from torch._inductor.compile_fx import compile_fx_inner

        made: Any = compile_fx_inner(graph, inputs, **options) if self._modules is None else self._tuned_module()

        def call(given: list[Any]) -> Any:
            with self._fake, self._recorder:
                return made(list(given))

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    def _tuned_module(self) -> Any:
        from torch._inductor.codecache import PyCodeCache

        if not self._modules:
            self._recorder.block("not-as-tuned", "the file compiles more graphs than were tuned")
            raise Untraceable("tuned modules")
        return PyCodeCache.load(self._modules.pop(0)).call

    def _pick_configurations(self) -> None:
        """Each kernel is compiled for one configuration: the tuned one, else the first."""
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner
        from triton import Config

        precompile = CachingAutotuner.precompile

        def picked(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            if kernel.configs:
                chosen = self._choices.get(kernel.inductor_meta.get("kernel_name", ""))
                kernel.configs = [Config(**chosen) if chosen else kernel.configs[0]]
            return precompile(kernel, *args, **kwargs)

        def kept(_kernel: Any, launcher: Any, *_args: Any, **_kwargs: Any) -> Any:
            return launcher

        _replace(CachingAutotuner, precompile=picked, coordinate_descent_tuning=kept, _dynamic_scale_rblock=_silent)


def _answer_interface() -> None:
    """What Dynamo and Inductor ask a device, and random states that they put back."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.runtime import triton_helpers

    _replace(CudaInterface, **{name: staticmethod(getattr(torch.cuda, name)) for name in _INTERFACE})
    zero = staticmethod(lambda _device: 0)
    _replace(CudaInterface, get_raw_stream=zero, exchange_device=zero, maybe_exchange_device=zero)
    _replace(CudaInterface, **{name: getattr(torch.cuda, name) for name in ("Event", "Stream", "device")})
    state = {"get_rng_state": lambda *_args: torch.zeros(16, dtype=torch.uint8), "set_rng_state": _silent}
    for owner in (torch, torch.random, torch.cuda):
        _replace(owner, **state)
    _replace(triton_helpers, set_driver_to_gpu=_silent)


def _settle_config() -> None:
    """One process, no caches, Triton's own launcher."""
    import torch._functorch.config
    from torch._inductor import config

    wanted = {
        "compile_threads": 1, "fx_graph_cache": False, "force_disable_caches": True, "use_static_cuda_launcher": False,
        "use_static_triton_launcher": False,
    }  # fmt: skip
    for name, value in wanted.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch._functorch.config.enable_autograd_cache = False


class _OnHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Real tensors that the compiler makes for itself are made on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, kwargs or {}))
        return func(*args, **kwargs)


def _fold_on_host() -> None:
    """Constant folding computes with real tensors, on the device of the graph."""
    from torch._inductor.constant_folding import ConstantFolder

    run_node = ConstantFolder.run_node

    def folded(folder: Any, node: Any) -> Any:
        with _OnHost():  # type: ignore[no-untyped-call]
            return run_node(folder, node)

    _replace(ConstantFolder, run_node=folded)


def _stand_ins_in_modules() -> None:
    """Inductor's modules allocate and view through functions that the dispatcher does not see."""
    from torch._inductor.codecache import PyCodeCache

    load = PyCodeCache.load_by_key_path

    def loaded(*args: Any, **kwargs: Any) -> Any:
        module = load(*args, **kwargs)
        for name, function in _STAND_INS.items():
            if hasattr(module, name):
                setattr(module, name, function)
        return module

    _replace(PyCodeCache, load_by_key_path=loaded)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _silent(*_args: object, **_kwargs: object) -> None: ...


_STAND_INS: dict[str, Callable[..., Any]] = {
    "empty_strided_cuda": wrappers.empty_strided, "reinterpret_tensor": wrappers.reinterpreted,
    "copy_if_misaligned": _same,
    "assert_size_stride": _silent, "assert_alignment": _silent,
}  # fmt: skip


def _replace(owner: object, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(owner, name, value)
