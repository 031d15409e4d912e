"""The offline Triton driver: every launch compiles for the target and becomes a step; nothing is launched.

Triton's own JIT does all specialisation. In the traced process these change: the active driver, the autotuner
(`tuning.py`), `do_bench` and the constructor of CompiledKernel (to keep the compiler's outputs by hash). Hooks and
allocators of the file run as they would; what they do is part of the plan, but for memory that an allocator makes for
scratch. Works with the launcher interfaces of Triton 3.6 to 3.9.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.compiler.compiler import CompiledKernel
from triton.runtime import _allocation
from triton.runtime.jit import JITFunction

from verifier.device_facts import triton_properties
from verifier.plan import abi, cuda_abi, cuda_image, elf, triton_image, ttir, tuning
from verifier.plan.record import Recorder, Step
from verifier.target import Target


class LaunchLimitError(RuntimeError):
    """A launch that the target refuses: its grid or cluster. The message has the numbers."""


class Utils:
    """What Triton asks of a device's driver at module load."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return triton_properties(self._target)

    def load_binary(self, name: str, cubin: bytes, _shared: int, _device: int) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills (not known here: 0) and threads per block, as files ask for occupancy."""
        return 1, 1, cuda_abi.read_facts(cubin, name).registers, 0, self._target.threads_per_block

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

    def __init__(self, target: Target, launcher: type, stream: int) -> None:
        self._target = target
        self.utils = Utils(target)
        self.launcher_cls = launcher
        self.get_current_stream = lambda _device=None: stream
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
        benchmarker: Callable[..., Any] = triton.testing.do_bench
        return benchmarker

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1, device="cuda")

    def clear_cache(self, _cache: object) -> None: ...


class Kernels:
    """Compiled kernels of one trace: plan images and blobs by the cubin's SHA-256."""

    def __init__(self) -> None:
        self.compiled: dict[str, Any] = {}
        self.images: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self._by_hash: dict[str, str] = {}

    def image(self, src: Any, metadata: Any) -> tuple[str, dict[str, Any]]:
        """Key and image of a kernel, made on its first launch."""
        key = self._by_hash.get(metadata.hash)
        if key is None:
            key = self._by_hash[metadata.hash] = self._add(src, metadata)
        return key, self.images[key]

    def _add(self, src: Any, metadata: Any) -> str:
        asm = self.compiled[metadata.hash].asm
        text = asm.get("ttir") or asm["ttgir"]  # a Gluon kernel starts one level lower
        files = {"cubin": bytes(asm["cubin"]), "ttir": str(text).encode(), "ptx": str(asm["ptx"]).encode()}
        hashes = {kind: hashlib.sha256(data).hexdigest() for kind, data in files.items()}
        self.blobs |= {f"{hashes[kind]}.{kind}": data for kind, data in files.items()}
        image = abi.image(src, metadata, **hashes, arguments=ttir.accesses(str(text)))
        image["global_bytes"] = elf.global_bytes(files["cubin"])
        image["assembly"] = {
            "fp_fusion": bool(metadata.enable_fp_fusion), "options": str(getattr(metadata, "ptx_options", None) or ""),
            "line_info": not triton.knobs.compilation.disable_line_info,
            "optimized": not triton.knobs.nvidia.disable_ptxas_opt,
        }  # fmt: skip
        key = triton_image.key(image)
        self.images.setdefault(key, image)
        return key


def install(target: Target, recorder: Recorder) -> Kernels:
    """Makes Triton record into `recorder`. Failures of the JIT are kept there, in case the candidate swallows
    them."""
    kernels = Kernels()
    launcher = _launcher(target, recorder, kernels)
    triton.runtime.driver.set_active(OfflineDriver(target, launcher, recorder.disguise.stream))
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

    def bench_once(call: Callable[[], Any], *_args: object, quantiles: Any = None, **_kwargs: object) -> Any:
        """Stands for triton.testing.do_bench: one call, a made-up time."""
        recorder.note("warning", "own-timing", "the file times kernels by itself; in a trace, all take equally long")
        call()
        took = recorder.disguise.milliseconds
        return [took] * len(quantiles) if quantiles else took

    CompiledKernel.__init__ = constructed
    JITFunction.run = run_noted
    tuning.install(recorder)
    triton.testing.do_bench = bench_once
    triton.testing.do_bench_cudagraph = bench_once
    return kernels


def _launcher(target: Target, recorder: Recorder, kernels: Kernels) -> type:
    class Launcher:
        """One per compiled kernel; a call is a launch."""

        def __init__(self, src: Any, metadata: Any) -> None:
            self._src, self._metadata = src, metadata

        def __call__(self, x: Any, y: Any, z: Any, _stream: Any, _function: Any, _packed: Any,
        launch_metadata: Any,
                     enter: Any, leave: Any, *args: Any) -> None:  # fmt: skip
            grid = (operator.index(x), operator.index(y), operator.index(z))
            launched = _launches(recorder, grid)
            key, image = kernels.image(self._src, self._metadata)
            if launched:
                _check_launch(target, grid, image, kernels)
            with recorder.diverted():  # the plan has scratch of its own
                _allocate_scratch(image, grid)
            if enter is not None:
                enter(launch_metadata)
            named = dict(zip(self._src.signature, args, strict=True))
            if hasattr(self._src, "fn"):
                recorder.log.launch(self._src.fn, grid, named)
            if launched:
                recorder.append(_launch_step(recorder, key, image, grid, abi.flatten(self._src, args)))
            if leave is not None:
                leave(launch_metadata)

    return Launcher


def _launches(recorder: Recorder, grid: tuple[int, int, int]) -> bool:
    """Whether Triton's launcher, which multiplies the grid in 32 bits, launches anything at all."""
    if any(not -(1 << 31) <= n < 1 << 31 for n in grid):
        raise LaunchLimitError(f"grid {grid} does not fit 32 bits")
    programs = (math.prod(grid) + (1 << 31)) % (1 << 32) - (1 << 31)
    if programs <= 0 and 0 not in grid:
        message = f"grid {grid}: Triton counts programs in 32 bits and launches nothing here"
        recorder.note("warning", "launch-skipped", message)
    return programs > 0


def _check_launch(target: Target, grid: tuple[int, int, int], image: dict[str, Any], kernels: Kernels) -> None:
    ctas = image["num_ctas"]
    blocks = (grid[0] * ctas, grid[1], grid[2])
    for axis, count, limit in zip("xyz", blocks, target.grid_max, strict=True):
        if count < 0 or count > limit:
            raise LaunchLimitError(f"grid {grid}: {axis} = {count} is outside 0 to {limit}")
    if ctas > target.cluster_max:
        raise LaunchLimitError(f"num_ctas = {ctas} is above {target.cluster_max}")
    if image["cooperative"]:
        facts = cuda_abi.read_facts(kernels.blobs[f"{image['cubin']}.cubin"], image["name"])
        resident = cuda_image.resident_blocks(target, facts, image["num_warps"] * target.warp_size, image["shared"])
        if math.prod(blocks) > resident * target.sms:
            raise LaunchLimitError(f"a cooperative grid of {math.prod(blocks)} blocks; {resident * target.sms} fit at "
                                   f"once ({resident} on each of {target.sms} multiprocessors)")  # fmt: skip


def _allocate_scratch(image: dict[str, Any], grid: tuple[int, int, int]) -> None:
    """Asks the file's allocator as the launcher does; what it gives is not used."""
    scratch = image["global_scratch"]
    if scratch["size"]:
        bytes_needed = math.prod(grid) * image["num_ctas"] * scratch["size"]
        _allocation._allocator.get()(bytes_needed, scratch["align"], 0)


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
