"""What judge and runner need of a device: memory that two processes can map, a launcher, a clock.

`cuda_device.py` is the real one. `host_device.py` does the same with memory of the host, so that all of the processes
run where there is no GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from verifier.gpu.launch import Launcher
from verifier.gpu.protocol import FailureKind


class Block(Protocol):
    """Memory that is mapped here. `nbytes` is what was asked for, rounded up to the device's granularity."""

    nbytes: int

    def bytes(self, start: int, count: int) -> Tensor:
        """uint8 [count] in a torch storage of its own that begins at `start`. Dies with the block."""
        ...

    def close(self) -> None:
        """Unmaps it. No view may be used afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """What an exception of torch or the driver means."""

    kind: FailureKind
    text: str
    lost: bool
    """The context is gone."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What a device's clock says of some calls."""

    seconds: list[float]
    untimed_seconds: float = 0.0
    """Device time between the calls: cache flushes."""
    clock_hz: float | None = None
    """Processor clock right before the calls."""
    starved: int = 0
    """Calls that the device waited for: the host gives them too late."""


class Call(NamedTuple):
    """What is timed, and what goes before and after it outside of the clock."""

    before: Callable[[], object]
    run: Callable[[], object]
    after: Callable[[], object]


class Capturable(Protocol):
    """A program that can run: a `Replayer`, or a contestant's."""

    def run(self) -> list[Tensor]: ...

    def restore(self) -> None: ...

    def forward(self) -> list[Tensor]: ...


class Captured(Protocol):
    """A program as a graph; its outputs stay where they are."""

    outputs: list[Tensor]

    def replay(self) -> None: ...

    def close(self) -> None: ...


class Device(Protocol):
    """One device, in one process."""

    torch_device: torch.device
    flush_bytes: int
    """Writing so many bytes empties the caches; 0 where there is nothing to flush."""
    architecture: str
    """`sm_90`; empty where any compiled kernel will do."""
    highest_hz: float | None
    """Of the processor's clock."""

    def create(self, nbytes: int) -> tuple[Block, int]:
        """New shareable memory and its file descriptor, which the caller closes. Raises OutOfMemoryError, CudaError."""
        ...

    def map(self, fd: int, nbytes: int) -> Block:
        """Maps memory of another process; closes `fd`. `nbytes` as the other side's block says."""
        ...

    def launcher(self) -> Launcher: ...

    def synchronize(self) -> None: ...

    def nothing(self) -> None:
        """Launches a kernel that does next to nothing."""
        ...

    def peek(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Contiguous uint8 parts of memory as they are now, on the host. Waits for no kernel of another process."""
        ...

    def free_bytes(self) -> int:
        """Memory that could still be had."""
        ...

    def other_bytes(self) -> int:
        """Memory in use that this process did not take: of other processes, and of contexts."""
        ...

    def make_room(self, nbytes: int) -> None:
        """Trims where less than `nbytes` could be had by another process."""
        ...

    def tidy(self, nbytes: int = 0) -> None:
        """Trims where less than `nbytes`, or less than half of the device, could be had by another process: to take
        gigabytes anew costs milliseconds."""
        ...

    def trim(self) -> None:
        """Gives back memory that torch keeps for later."""
        ...

    def capture(self, program: Capturable) -> Captured | None:
        """A graph of a bound program, None where it cannot be one. Raises what a lost context raises."""
        ...

    def time(self, calls: Sequence[Call], flush: bool) -> Timed:
        """Times the middle of each call by the device's clock; right before it the caches are emptied if `flush`."""
        ...

    def failure(self, error: BaseException) -> Failure | None:
        """What an exception means, None if it is none of the device's."""
        ...


def open_device(factory: str) -> Device:
    """Calls `package.module:function`, which opens the device of this process."""
    module, _, name = factory.partition(":")
    device: Device = getattr(importlib.import_module(module), name)()
    return device
