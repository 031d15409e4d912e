"""Time of each step of a replay, from the device's clock around it.

Before each run the caches are emptied, and on a GPU a kernel spins, so that the host is ahead of the device and its own
work does not show. What lies between two events holds the start and the drain of a kernel too; the last time, of a
kernel on one element, is that share.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from verifier.gpu.device import Call, Device
from verifier.gpu.replay import Replayer

MOST_STEPS = 2000
RUNS = 3
SLOW_SECONDS = 4e-3
"""Of a run, above which the first one tells enough."""
_SPIN_CYCLES = 200_000
_STEP_CYCLES = 200_000
_MOST_CYCLES = 80_000_000
"""Cycles at about 2 GHz: 0.1 ms and as much for each step, which the host takes to put it into the stream."""


def time_steps(replayer: Replayer, device: Device, runs: int = RUNS) -> list[float]:
    """Median seconds of each forward step of a bound replayer that has been set up, then those of a tiny kernel.

    Raises ValueError for more than `MOST_STEPS` steps, ReplayError, and what the device raises.
    """
    count = len(replayer.program.forward)
    if count > MOST_STEPS:
        raise ValueError(f"the program has {count} steps, {MOST_STEPS} are timed at most")
    tiny = torch.zeros(1, device=device.torch_device)
    tiny.add_(1)  # the first launch loads its kernel, which takes longer than many a step
    flush = torch.empty(device.flush_bytes, dtype=torch.uint8, device=device.torch_device)
    prepare = _preparation(replayer, flush, count)
    calls = [Call(prepare if i == 0 else _nothing, _step(replayer, i), _nothing) for i in range(count)]
    calls.append(Call(_nothing, lambda: tiny.add_(1), _nothing))
    first = device.time(calls, False).seconds  # what the library does on its first call is in it
    slow = sum(first) > SLOW_SECONDS
    rows = [first] if slow else [device.time(calls, False).seconds for _ in range(runs)]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def _preparation(replayer: Replayer, flush: torch.Tensor, count: int) -> Callable[[], None]:
    def prepare() -> None:
        replayer.restore()
        flush.zero_()
        if flush.is_cuda:
            cycles = min(_MOST_CYCLES, _SPIN_CYCLES + count * _STEP_CYCLES)
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]

    return prepare


def _step(replayer: Replayer, position: int) -> Callable[[], None]:
    return lambda: replayer.step(position)


def _nothing() -> None:
    return None
