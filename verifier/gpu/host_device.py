"""A device in host memory: slots are memory files, library steps run on the CPU, kernels are Python functions.

For tests and for trying the processes where there is no GPU. Its clock is the host's.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from verifier.gpu.device import Call, Capturable, Captured, Failure, Timed
from verifier.gpu.launch import Launcher
from verifier.plan.schema import Alternative, KernelImage

Kernel = Callable[[Alternative, Sequence[int]], None]
"""Gets the launch and the addresses of its arguments."""
_FREE = 1 << 30


class HostBlock:
    """A mapped memory file."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._map = mmap.mmap(fd, nbytes)
        self._all = torch.frombuffer(self._map, dtype=torch.uint8)

    def bytes(self, start: int, count: int) -> Tensor:
        if start < 0 or start + count > self.nbytes:
            raise ValueError("outside of the block")
        if not count:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=count, offset=start)

    def close(self) -> None:
        """The file is unmapped when its last view dies."""
        del self._map, self._all


class HostLauncher:
    """Kernels by name."""

    def __init__(self, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = kernels

    def load(self, image: KernelImage, cubin: bytes) -> Kernel:
        return self._kernels[image.name]

    def launch(
        self, kernel: Kernel, image: KernelImage, launch: Alternative, addresses: Sequence[int], stream: int
    ) -> None:
        kernel(launch, addresses)

    def close(self) -> None:
        return None


class HostDevice:
    """The CPU as a device with `kernels`."""

    torch_device = torch.device("cpu")
    flush_bytes = 0
    architecture = ""
    highest_hz: float | None = None

    def __init__(self, kernels: Mapping[str, Kernel] | None = None) -> None:
        self._kernels = kernels or {}
        torch.set_num_threads(1)

    def create(self, nbytes: int) -> tuple[HostBlock, int]:
        size = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create("warpsmith-slot")
        os.ftruncate(fd, size)
        return HostBlock(fd, size), fd

    def map(self, fd: int, nbytes: int) -> HostBlock:
        try:
            return HostBlock(fd, nbytes)
        finally:
            os.close(fd)

    def launcher(self) -> Launcher:
        return HostLauncher(self._kernels)

    def synchronize(self) -> None:
        return None

    def nothing(self) -> None:
        return None

    def peek(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return [part.clone() for part in parts]

    def free_bytes(self) -> int:
        return _FREE

    def other_bytes(self) -> int:
        return 0

    def make_room(self, nbytes: int) -> None:
        return None

    def tidy(self, nbytes: int = 0) -> None:
        return None

    def trim(self) -> None:
        return None

    def capture(self, program: Capturable) -> Captured | None:
        return None

    def time(self, calls: Sequence[Call], flush: bool) -> Timed:
        begin, seconds = time.perf_counter(), []
        for call in calls:
            call.before()
            start = time.perf_counter()
            call.run()
            seconds.append(time.perf_counter() - start)
            call.after()
        return Timed(seconds, max(0.0, time.perf_counter() - begin - sum(seconds)))

    def failure(self, error: BaseException) -> Failure | None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return Failure("out-of-memory", str(error), False)
        return None


def open_device() -> HostDevice:
    """A host device without kernels: plans of library steps only."""
    return HostDevice()


def tensor_at(address: int, count: int, dtype: torch.dtype) -> Tensor:
    """`count` elements at an address of this process, for kernels written in Python."""
    import ctypes

    size: Any = ctypes.c_uint8 * (count * dtype.itemsize)
    return torch.frombuffer(size.from_address(address), dtype=dtype)
