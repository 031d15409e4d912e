"""The GPU of this process: the first one that CUDA_VISIBLE_DEVICES shows.

Shared memory is made with cuMemCreate and passed as a POSIX file descriptor (CUDA Driver API, "Virtual Memory
Management"); it crosses a change of user and of namespaces, which the older CUDA IPC does not. Every failure of a
running kernel loses the context (CUDA Runtime API, "Error Handling"): the process has to end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from verifier.gpu import cuda
from verifier.gpu.cuda import CudaError
from verifier.gpu.device import Call, Capturable, Captured, Failure, Timed
from verifier.gpu.graph import CapturedProgram
from verifier.gpu.launch import CudaLauncher, Launcher
from verifier.gpu.memory import ReplayError, foreign
from verifier.gpu.protocol import FailureKind

_SPIN_CYCLES = 400_000, 4_000_000
"""The least and the most that a spinning kernel counts to read the SM clock, from 0.2 to 2 ms; calls queue up behind it
meanwhile."""
_CALMER = 0.9
"""Of the cycles, after calls that were all in time."""
_SPARE = 2 << 30
"""Bytes left to other processes beside what they are known to need."""
_CODES: dict[int, FailureKind] = {
    2: "out-of-memory", 700: "illegal-address", 714: "illegal-address", 715: "launch-failed", 716: "illegal-address",
    717: "illegal-address", 718: "launch-failed", 719: "launch-failed", 710: "device-assert",
}  # fmt: skip
_TEXTS: dict[str, FailureKind] = {
    "illegal memory access": "illegal-address",
    "misaligned address": "illegal-address",
    "device-side assert": "device-assert",
    "unspecified launch failure": "launch-failed",
    "illegal instruction": "launch-failed",
    "out of memory": "out-of-memory",
}


class CudaBlock:
    """A mapping of memory made by cuMemCreate."""

    def __init__(self, handle: Any, nbytes: int, device: torch.device) -> None:
        """Maps the whole allocation and gives up `handle`; the memory lives as long as a mapping or descriptor does."""
        api = cuda.driver()
        self.nbytes, self._device, self._address = nbytes, device, 0
        try:
            reserved = int(cuda.check("reserving addresses", api.cuMemAddressReserve(nbytes, 0, 0, 0)))
            try:
                cuda.check("mapping memory", api.cuMemMap(reserved, nbytes, 0, handle, 0))
                self._address = reserved
                cuda.check("access to memory", api.cuMemSetAccess(reserved, nbytes, [_access(device)], 1))
            except CudaError:
                if self._address:
                    self.close()
                else:
                    api.cuMemAddressFree(reserved, nbytes)
                raise
        finally:
            api.cuMemRelease(handle)

    def bytes(self, start: int, count: int) -> Tensor:
        if start < 0 or start + count > self.nbytes or not self._address:
            raise ValueError("outside of the block")
        if not count:
            return torch.empty(0, dtype=torch.uint8, device=self._device)
        return foreign(self._address + start, count, self._device)

    def close(self) -> None:
        """Waits for the device first, so that no kernel loses memory under its feet."""
        if not self._address:
            return
        api, address, self._address = cuda.driver(), self._address, 0
        torch.cuda.synchronize()
        cuda.check("unmapping memory", api.cuMemUnmap(address, self.nbytes))
        cuda.check("giving addresses back", api.cuMemAddressFree(address, self.nbytes))


class CudaDevice:
    """One GPU in one process, with torch's own context."""

    def __init__(self) -> None:
        """Starts CUDA. Raises RuntimeError where there is none."""
        self.torch_device = torch.device("cuda", 0)
        torch.cuda.set_device(self.torch_device)
        torch.zeros(1, device=self.torch_device)
        self._properties = torch.cuda.get_device_properties(self.torch_device)
        self.flush_bytes = 2 * int(self._properties.L2_cache_size)
        major, minor = torch.cuda.get_device_capability(self.torch_device)
        self.architecture = f"sm_{major}{minor}"
        self.highest_hz: float | None = 1e3 * cuda.device_attribute("CLOCK_RATE")
        self._flush: Tensor | None = None
        self._spin = _SPIN_CYCLES[0]
        self._pinned: Tensor | None = None
        self._peeking: Any = None
        self._unit = self._granularity()

    def create(self, nbytes: int) -> tuple[CudaBlock, int]:
        api = cuda.driver()
        size = -(-nbytes // self._unit) * self._unit
        properties = _properties(self.torch_device)
        try:
            handle = cuda.check("allocating shared memory", api.cuMemCreate(size, properties, 0))
        except CudaError as error:
            if error.code != 2:
                raise
            self.trim()
            try:
                handle = cuda.check("allocating shared memory", api.cuMemCreate(size, properties, 0))
            except CudaError as again:
                raise torch.OutOfMemoryError(f"{again}: {size} bytes") from None
        kind = api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        try:
            fd = int(cuda.check("exporting memory", api.cuMemExportToShareableHandle(handle, kind, 0)))
        except CudaError:
            api.cuMemRelease(handle)
            raise
        try:
            return CudaBlock(handle, size, self.torch_device), fd
        except CudaError:
            os.close(fd)
            raise

    def map(self, fd: int, nbytes: int) -> CudaBlock:
        api = cuda.driver()
        kind = api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        try:
            handle = cuda.check("importing memory", api.cuMemImportFromShareableHandle(fd, kind))
        finally:
            os.close(fd)
        return CudaBlock(handle, nbytes, self.torch_device)

    def launcher(self) -> Launcher:
        return CudaLauncher()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def nothing(self) -> None:
        torch.cuda._sleep(1)  # type: ignore[no-untyped-call]

    def peek(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """By a copy engine, which serves this process while the processors serve another one."""
        size = sum(part.numel() for part in parts)
        if self._pinned is None or self._pinned.numel() < size:
            self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._peeking = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        found, at = [], 0
        with torch.cuda.stream(self._peeking):
            for part in parts:
                found.append(self._pinned[at : at + part.numel()])
                found[-1].copy_(part, non_blocking=True)
                at += part.numel()
        self._peeking.synchronize()
        return [part.clone() for part in found]

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info()[0]) + _held("reserved_bytes") - _held("allocated_bytes")

    def other_bytes(self) -> int:
        free, total = torch.cuda.mem_get_info()
        return int(total - free) - _held("reserved_bytes")

    def make_room(self, nbytes: int) -> None:
        if torch.cuda.mem_get_info()[0] < nbytes + _SPARE:
            self.trim()

    def tidy(self, nbytes: int = 0) -> None:
        free, total = torch.cuda.mem_get_info()
        if free < max(nbytes + _SPARE, total // 2):
            self.trim()

    def trim(self) -> None:
        self._flush = None
        torch.cuda.empty_cache()
        torch._C._host_emptyCache()  # a captured graph leaves a pool of its own here, which nothing else gives back

    def capture(self, program: Capturable) -> Captured | None:
        stream = torch.cuda.current_stream()
        try:
            return CapturedProgram(program)
        except (RuntimeError, CudaError, ReplayError):
            torch.cuda.set_stream(stream)  # torch stays on its own where the capture cannot even be ended
            with suppress(RuntimeError):
                self.nothing()  # takes the error that the capture left for the next launch
            torch.cuda.synchronize()  # raises where the context is lost
            return None

    def time(self, calls: Sequence[Call], flush: bool) -> Timed:
        """By events round each call. A kernel that spins first reads the SM clock and lets the calls queue up, longer
        after calls that the device had to wait for: what it waits counts as theirs. Lines that a kernel asked the L2
        cache to keep are given up before.
        """
        marks = [_event() for _ in range(2 * len(calls) + 2)]
        if flush and self._flush is None:
            self._flush = torch.empty(self.flush_bytes, dtype=torch.uint8, device=self.torch_device)
        torch.cuda.synchronize()
        cuda.check("resetting the L2 cache", cuda.driver().cuCtxResetPersistingL2Cache())
        marks[0].record()
        torch.cuda._sleep(self._spin)  # type: ignore[no-untyped-call]
        marks[1].record()
        cycles, starved = self._spin, 0
        for i, call in enumerate(calls):
            call.before()
            if flush and self._flush is not None:
                self._flush.zero_()
            marks[2 * i + 2].record()
            call.run()
            marks[2 * i + 3].record()
            starved += marks[2 * i + 2].query()
            call.after()
        torch.cuda.synchronize()
        seconds = [_between(marks[i], marks[i + 1]) for i in range(2, len(marks), 2)]
        spun, whole = _between(marks[0], marks[1]), _between(marks[0], marks[-1])
        least, most = _SPIN_CYCLES
        self._spin = min(4 * cycles, most) if starved else max(int(_CALMER * cycles), least)
        return Timed(seconds, max(0.0, whole - sum(seconds)), cycles / spun if spun > 0 else None, starved)

    def failure(self, error: BaseException) -> Failure | None:
        text = " ".join(str(error).split())[:2000]
        if isinstance(error, torch.OutOfMemoryError):
            return Failure("out-of-memory", text, lost=False)
        if isinstance(error, CudaError):
            return Failure(_CODES.get(error.code, "launch-failed"), text, lost=error.sticky)
        if isinstance(error, RuntimeError):
            kind = next((k for words, k in _TEXTS.items() if words in text), None)
            if kind is not None:
                return Failure(kind, text.partition(" CUDA kernel errors might")[0], lost=kind != "out-of-memory")
            if isinstance(error, torch.AcceleratorError):
                return Failure("launch-failed", text, lost=True)
        return None

    def _granularity(self) -> int:
        api = cuda.driver()
        option = api.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        found = api.cuMemGetAllocationGranularity(_properties(self.torch_device), option)
        return int(cuda.check("granularity of memory", found))


def _held(what: str) -> int:
    """Memory that torch has now. `torch.cuda.memory_reserved` sorts all of its statistics, half a millisecond."""
    return int(torch.cuda.memory_stats_as_nested_dict()[what]["all"]["current"])


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _between(first: Any, second: Any) -> float:
    return float(first.elapsed_time(second)) / 1e3


def _properties(device: torch.device) -> Any:
    api = cuda.driver()
    made = api.CUmemAllocationProp()
    made.type = api.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    made.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    made.location.id = device.index or 0
    made.requestedHandleTypes = api.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return made


def _access(device: torch.device) -> Any:
    api = cuda.driver()
    made = api.CUmemAccessDesc()
    made.location.type = api.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    made.location.id = device.index or 0
    made.flags = api.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    return made


def open_device() -> CudaDevice:
    """The GPU as judge and runner want it."""
    return CudaDevice()
