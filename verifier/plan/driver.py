"""The offline Triton driver: every launch compiles for the target and becomes a step; nothing is launched.

Triton's own JIT does all specialisation. Three places change in the traced process: the active driver, the
autotuner's `run` (every configuration that fits is recorded as an alternative of one launch; the first one
counts) and the constructor of CompiledKernel (to keep the compiler's outputs by hash). Works with the
launcher interfaces of Triton 3.6 to 3.9.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.compiler.compiler import CompiledKernel
from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime import _allocation
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources, PTXASError
from triton.runtime.jit import JITFunction

from verifier.plan import abi, elf, ttir
from verifier.plan.record import Recorder, Step
from verifier.plan.target import TraceTarget

MAX_ALTERNATIVES = 64


class LaunchLimitError(RuntimeError):
    """A launch that the target refuses: its grid or cluster. The message has the numbers."""


class Utils:
    """What Triton asks of a device's driver at module load."""

    def __init__(self, target: TraceTarget) -> None:
        self._target = target

    def get_device_properties(self, _device: int) -> dict[str, int]:
        t = self._target
        return {
            "max_shared_mem": t.shared_per_block, "multiprocessor_count": t.sms,
            "max_num_regs": t.registers_per_sm,
            "warpSize": t.warp_size, "sm_clock_rate": 1_980_000, "mem_clock_rate": 3_201_000,
            "mem_bus_width": 6144,
        }  # fmt: skip

    def load_binary(self, _name: str, _cubin: bytes, _shared: int, _device: int) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, self._target.threads_per_block

    def unload_module(self, *_args: object) -> None: ...
    def set_printf_fifo_size(self, *_args: object) -> None: ...
    def cuOccupancyMaxActiveClusters(self, *_args: object) -> int:
        return 1

    def get_device_capability(self, _device: int = 0) -> tuple[int, int]:
        return self._target.capability // 10, self._target.capability % 10

    def get_current_device(self) -> int:
        return 0

    def get_default_stream(self, _device: int = 0) -> int:
        return 0

    def is_stream_capturing(self, *_args: object) -> bool:
        return False


class OfflineDriver(GPUDriver):  # type: ignore[misc]
    """A driver whose launcher records. `set_active` makes Triton use it."""

    def __init__(self, target: TraceTarget, launcher: type) -> None:
        self._target = target
        self.utils = Utils(target)
        self.launcher_cls = launcher
        self.get_current_stream = lambda _device=None: 0
        self.get_current_device = lambda: 0
        self.set_current_device = lambda _device: None
        self.get_device_capability = lambda _device=None: self.utils.get_device_capability()

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._target.capability, self._target.warp_size)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, ty: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return str(ty_to_cpp(ty))

    def get_benchmarker(self) -> Callable[..., Any]:
        return bench_once

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1, device="cuda")

    def clear_cache(self, _cache: object) -> None: ...


def bench_once(call: Callable[[], Any], *_args: object, quantiles: Any = None, **_kwargs: object) -> Any:
    """Stands for triton.testing.do_bench: one call, a made-up time of 1 ms."""
    call()
    return [1.0] * len(quantiles) if quantiles else 1.0


class Kernels:
    """Compiled kernels of one trace: plan images and blobs by the cubin's SHA-256."""

    def __init__(self) -> None:
        self.compiled: dict[str, Any] = {}
        self.images: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self._by_hash: dict[str, str] = {}

    def image(self, src: Any, metadata: Any) -> tuple[str, dict[str, Any]]:
        """SHA and image of a kernel, made on its first launch."""
        sha = self._by_hash.get(metadata.hash)
        if sha is None:
            sha = self._add(src, metadata)
        return sha, self.images[sha]

    def _add(self, src: Any, metadata: Any) -> str:
        asm = self.compiled[metadata.hash].asm
        cubin, text = bytes(asm["cubin"]), str(asm["ttir"])
        sha = self._by_hash[metadata.hash] = hashlib.sha256(cubin).hexdigest()
        text_sha = hashlib.sha256(text.encode()).hexdigest()
        ptx = str(asm["ptx"])
        ptx_sha = hashlib.sha256(ptx.encode()).hexdigest()
        self.blobs |= {
            f"{sha}.cubin": cubin,
            f"{text_sha}.ttir": text.encode(),
            f"{ptx_sha}.ptx": ptx.encode(),
        }
        image = abi.image(src, metadata, sha, text_sha, ptx_sha, ttir.accesses(text))
        self.images[sha] = image | {"global_bytes": elf.global_bytes(cubin)}
        return sha


def install(target: TraceTarget, recorder: Recorder) -> Kernels:
    """Makes Triton record into `recorder`. Failures of the JIT are kept there, in case the candidate swallows
    them."""
    kernels = Kernels()
    triton.runtime.driver.set_active(OfflineDriver(target, _launcher(target, recorder, kernels)))
    construct = CompiledKernel.__init__
    run_jit = JITFunction.run

    def constructed(self: Any, src: Any, metadata_group: Any, hash: str) -> None:
        construct(self, src, metadata_group, hash)
        kernels.compiled[self.hash] = self
        kernels.compiled[self.metadata.hash] = self

    def run_noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            with recorder.log.pause():
                return run_jit(self, *args, **kwargs)
        except Exception as failure:
            recorder.failures.append(failure)
            raise

    def run_autotuned(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _autotune(self, recorder, args, kwargs)

    CompiledKernel.__init__ = constructed
    JITFunction.run = run_noted
    Autotuner.run = run_autotuned
    triton.testing.do_bench = bench_once
    triton.testing.do_bench_cudagraph = bench_once
    return kernels


def _autotune(tuner: Any, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs every configuration under the recorder and appends one launch with those that fit as
    alternatives."""
    tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
    configs = tuner.prune_configs(kwargs) if len(tuner.configs) > 1 else tuner.configs
    if len(configs) > MAX_ALTERNATIVES:
        recorder.note(
            "warning",
            "many-configs",
            f"{len(configs)} autotune configurations; the first {MAX_ALTERNATIVES} count",
        )
    taken: list[tuple[Any, Step]] = []
    mark = recorder.log.mark()
    result: Any = None
    failure: Exception | None = None
    for config in configs[:MAX_ALTERNATIVES]:
        try:
            with recorder.diverted() as steps:
                made = _run_config(tuner, config, args, kwargs)
        except (OutOfResources, CompileTimeAssertionFailure, PTXASError, LaunchLimitError) as refused:
            failure = refused
            recorder.failures.clear()
            recorder.note("warning", "config-dropped", f"{config}: {str(refused).splitlines()[-1]}")
            continue
        if not taken:
            result = made
            tuner.best_config = config
        if (step := _one_launch(steps, config)) is not None:
            taken.append((config, step))
    dropped = failure is not None or len(configs) > MAX_ALTERNATIVES
    recorder.log.join(mark, {name for c in configs for name in c.kwargs} if dropped else ())
    if not taken and failure is not None:
        raise failure
    if taken:
        recorder.append(_merge(tuner, [step for _, step in taken]))
    tuner.nargs = None
    return result


def _run_config(tuner: Any, config: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    settings = config.all_kwargs()
    if clash := kwargs.keys() & config.kwargs.keys():
        raise ValueError(
            f"Conflicting meta-parameters: {', '.join(clash)}. Make sure that you don't re-define auto-tuned symbols."
        )
    if config.pre_hook is not None:
        config.pre_hook({**tuner.nargs, **kwargs, **settings})
    return tuner.fn.run(*args, **{**kwargs, **settings})


def _one_launch(steps: list[Step], config: Any) -> Step | None:
    """The launch among the steps of one configuration, with what its pre_hook did before it; None for an
    empty grid."""
    launches = [s for s in steps if s.body["kind"] == "launch"]
    if len(launches) != 1:
        return None
    launch = launches[0]
    before = [s for s in steps if s.body["kind"] == "aten"]
    alternative = launch.body["alternatives"][0]
    alternative["config"] = str(config)[:500]
    alternative["before"] = [s.body for s in before]
    for s in before:
        launch.reads |= s.reads - s.fresh
        launch.writes |= s.writes
        launch.fresh |= s.fresh
    return launch


def _merge(tuner: Any, launches: list[Step]) -> Step:
    first = launches[0]
    body = {**first.body, "autotuned": True, "reset_to_zero": [str(n) for n in tuner.reset_to_zero],
            "restore_value": [str(n) for n in tuner.restore_value]}  # fmt: skip
    body["alternatives"] = [s.body["alternatives"][0] for s in launches]
    step = Step(body, first.phase)
    step.reads = set().union(*(s.reads for s in launches))
    step.writes = set().union(*(s.writes for s in launches))
    step.fresh = set().union(*(s.fresh for s in launches))
    step.kills = set.intersection(*(s.kills for s in launches))
    return step


def _launcher(target: TraceTarget, recorder: Recorder, kernels: Kernels) -> type:
    class Launcher:
        """One per compiled kernel; a call is a launch."""

        def __init__(self, src: Any, metadata: Any) -> None:
            self._src, self._metadata = src, metadata

        def __call__(self, x: Any, y: Any, z: Any, _stream: Any, _function: Any, _packed: Any,
        launch_metadata: Any,
                     enter: Any, leave: Any, *args: Any) -> None:  # fmt: skip
            grid = (operator.index(x), operator.index(y), operator.index(z))
            _check_launch(target, grid, self._metadata)
            if enter is not None:
                enter(launch_metadata)
            sha, image = kernels.image(self._src, self._metadata)
            _check_scratch(image)
            recorder.log.launch(self._src.fn.fn, grid, dict(zip(self._src.signature, args, strict=True)))
            if 0 not in grid:
                recorder.append(_launch_step(recorder, sha, image, grid, abi.flatten(self._src, args)))
            if leave is not None:
                leave(launch_metadata)

    return Launcher


def _check_launch(target: TraceTarget, grid: tuple[int, int, int], metadata: Any) -> None:
    blocks = (grid[0] * metadata.num_ctas, grid[1], grid[2])
    for axis, count, limit in zip("xyz", blocks, target.grid_max, strict=True):
        if count < 0 or count > limit:
            raise LaunchLimitError(f"grid {grid}: {axis} = {count} is outside 0 to {limit}")
    if metadata.num_ctas > target.cluster_max:
        raise LaunchLimitError(f"num_ctas = {metadata.num_ctas} is above {target.cluster_max}")


def _check_scratch(image: dict[str, Any]) -> None:
    if image["global_scratch"]["size"] and isinstance(_allocation._allocator.get(), _allocation.NullAllocator):
        raise RuntimeError("Kernel requires a runtime memory allocation, but no allocator was set. "
                           "Use triton.set_allocator to specify an allocator.")  # fmt: skip


def _launch_step(recorder: Recorder, sha: str, image: dict[str, Any], grid: tuple[int, int, int],
                 args: Iterator[tuple[str, str, Any]]) -> Step:  # fmt: skip
    step = Step({}, recorder.phase)
    encoded = [abi.encode(recorder, name, kind, value, i) for i, (name, kind, value) in enumerate(args)]
    stored: set[int] = set()
    loaded: set[int] = set()
    for arg, param in zip([a for a in encoded if a["t"] != "constexpr"], image["params"], strict=True):
        if "storage" in arg:
            if param["access"] in ("load", "both"):
                loaded.add(arg["storage"])
            if param["access"] in ("store", "both"):
                stored.add(arg["storage"])
    step.reads, step.writes, step.kills = loaded, stored, stored - loaded
    alternative = {"kernel": sha, "grid": list(grid), "args": encoded, "config": "", "before": []}
    step.body = {"kind": "launch", "alternatives": [alternative], "line": recorder.line(), "autotuned": False,
                 "reset_to_zero": [], "restore_value": []}  # fmt: skip
    return step
