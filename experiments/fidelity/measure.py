"""What both children measure: seeds, inputs, bits and errors of tensors, times. Runs on a GPU, in tests on a CPU.

Outputs travel between the processes as files: whole up to `WHOLE_BYTES` each, else as a sample; checksums of blocks
cover every byte of them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from verifier.measure import relative_error
from verifier.numerics import FLOORS, UNCENTRED_FLOORS
from verifier.problem import Precision
from verifier.specs import dtype_name, dtype_of, leaves

SEED = 42
"""KernelBench's."""
WHOLE_BYTES = 1 << 30
SAMPLE_BYTES = 1 << 28
_BLOCK = 1 << 24
"""Words of a checksum."""


# -- inputs and state ------------------------------------------------------------------------------


def seed() -> None:
    torch.manual_seed(SEED)


def make_inputs(problem: ModuleType, device: torch.device) -> list[Any]:
    """`get_inputs()` after the seed, drawn on the device: gigabytes take seconds on a host. Where the file insists on
    the host, drawn there and copied."""
    seed()
    try:
        with torch.device(device):
            made = problem.get_inputs()
    except (RuntimeError, TypeError, ValueError):
        seed()
        made = problem.get_inputs()
    return [to(value, device) for value in made]


def to(value: Any, device: torch.device) -> Any:
    """The value with its tensors on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(to(v, device) for v in value)
    return {k: to(v, device) for k, v in value.items()} if isinstance(value, dict) else value


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def construct(maker: Callable[..., nn.Module], problem: ModuleType) -> nn.Module:
    """A model as KernelBench makes it: the seed before the arguments and before the constructor; on the host."""
    seed()
    arguments = problem.get_init_inputs()
    seed()
    return maker(*arguments)


# -- bits ------------------------------------------------------------------------------------------


def checksums(tensor: Tensor) -> list[int]:
    """One 64-bit sum per 128 MiB over all bytes of a contiguous copy, each word times an odd number of its own.

    Any change of one word changes its sum; it is no cryptographic hash.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if rest := data.numel() % 8:
        data = torch.cat([data, data.new_zeros(8 - rest)])
    if data.data_ptr() % 8:
        data = data.clone()
    words = data.view(torch.int64)
    weights = torch.arange(min(_BLOCK, words.numel()), device=words.device) * 0x5851F42D4C957F2D | 1
    return [int((part * weights[: part.numel()]).sum()) for part in _blocks(words)]


def _blocks(words: Tensor) -> Iterator[Tensor]:
    return (words[i : i + _BLOCK] for i in range(0, words.numel(), _BLOCK))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


# -- errors ----------------------------------------------------------------------------------------


def limit(dtype: torch.dtype, *, centred: bool) -> float:
    """Largest error between two honest ways to compute: the floor of the contract class. 0 for integers."""
    if not dtype.is_floating_point:
        return 0.0
    contract = {torch.float16: Precision.FP16, torch.bfloat16: Precision.BF16}.get(dtype, Precision.TF32)
    return (FLOORS if centred else UNCENTRED_FLOORS)[contract]


# -- outputs as files ------------------------------------------------------------------------------


def save_outputs(outputs: Sequence[Tensor], folder: Path) -> list[dict[str, Any]]:
    """Writes `out0`, `out1`, ... and says what they are."""
    return [_save(tensor, folder / f"out{i}") for i, tensor in enumerate(outputs)]


def _save(tensor: Tensor, path: Path) -> dict[str, Any]:
    stride = sample_stride(tensor)
    data = _bytes(tensor.detach().reshape(-1)[::stride])
    file = torch.from_file(str(path), shared=True, size=max(data.numel(), 1), dtype=torch.uint8)
    file[: data.numel()].copy_(data)
    return {
        "shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype), "stride": stride,
        "checksums": checksums(tensor),
    }  # fmt: skip


def sample_stride(tensor: Tensor) -> int:
    """1 for a tensor that is kept whole, else every which element is kept (odd, so that it crosses rows)."""
    size = tensor.numel() * tensor.element_size()
    return 1 if size <= WHOLE_BYTES else (size // SAMPLE_BYTES) | 1


def read_output(said: Mapping[str, Any], path: Path, device: torch.device) -> Tensor:
    """What `save_outputs` wrote, flat."""
    dtype = dtype_of(said["dtype"])
    kept = len(range(0, math.prod(said["shape"]), said["stride"]))
    size = kept * dtype.itemsize
    data = torch.from_file(str(path), shared=False, size=max(size, 1), dtype=torch.uint8)
    return data[:size].to(device).view(dtype)


def compare(found: Sequence[Tensor], said: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Outputs here against those in files: same shapes, all bits equal, worst error and whether it is allowed."""
    result: dict[str, Any] = {"shapes": len(found) == len(said), "equal": True, "error": 0.0, "within": True}
    for i, (tensor, about) in enumerate(zip(found, said, strict=False)):
        if list(tensor.shape) != about["shape"] or dtype_name(tensor.dtype) != about["dtype"]:
            return {"shapes": False, "equal": False, "error": None, "within": False}
        if checksums(tensor) == about["checksums"]:
            continue
        kept = read_output(about, folder / f"out{i}", tensor.device)
        error, centred = relative_error(tensor.detach().reshape(-1)[:: about["stride"]], kept)
        result["equal"] = False
        result["error"] = max(result["error"], error)
        result["within"] = result["within"] and error <= limit(tensor.dtype, centred=centred)
    if not math.isfinite(result["error"]):
        result["error"] = None
    return result


def tensors(output: Any) -> list[Tensor]:
    return list(leaves(output))


# -- time ------------------------------------------------------------------------------------------


def timed(call: Callable[[], Any], device: torch.device, seconds: float) -> list[float]:
    """Milliseconds of 1 to 9 calls, as many as fit into about `seconds`: by events on a GPU, by the clock elsewhere."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 9 and (not times or time.perf_counter() - begin < seconds):
        times.append(_once(call, device))
    return times


def _once(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    event: Callable[..., Any] = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def summary(times: Sequence[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(times), "least_ms": min(times)}


def settle(device: torch.device) -> None:
    """Waits for the device, so that its faults show here."""
    if device.type == "cuda":
        torch.cuda.synchronize()
