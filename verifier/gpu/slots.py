"""Slots: where tensors lie in memory that judge and runner share, with guards around each.

The judge creates a block, lays out tensors in it and fills what is between them with a secret byte; the runner maps the
block and gets views. Every tensor has a torch storage of its own that begins where the plan's storage begins, so that
views and byte offsets of a plan hold. A host page of counters says ready, go and done where a socket would be too slow.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from verifier.gpu.device import Block, Device
from verifier.gpu.memory import GUARD
from verifier.plan.arguments import Dim, Dims, DType
from verifier.plan.schema import Program
from verifier.specs import dtype_name, dtype_of, span

ALIGN = 512
_COUNT = struct.Struct("<Q")
_SPIN_SECONDS = 2e-3

Bytes = Annotated[int, Field(ge=0, le=1 << 40)]


class Place(BaseModel):
    """A tensor in a shared block: its storage is `bytes` from `start`; shape, stride and offset are elements in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    block: Annotated[int, Field(ge=0, lt=1 << 20)]
    start: Bytes
    bytes: Bytes
    dtype: DType
    shape: Dims
    stride: Dims
    offset: Dim = 0


def view(block: Block, place: Place) -> Tensor:
    """The tensor at `place`, which must be within the block. Raises ValueError."""
    dtype = dtype_of(place.dtype)
    need = (place.offset + span(place.shape, place.stride)) * dtype.itemsize
    if need > place.bytes or place.start + place.bytes > block.nbytes:
        raise ValueError("a slot is outside of its block")
    count = place.bytes // dtype.itemsize * dtype.itemsize
    flat = block.bytes(place.start, count).view(dtype)
    return flat.as_strided(place.shape, place.stride, place.offset)


def all_bytes(tensor: Tensor) -> Tensor:
    """The whole storage of a tensor as uint8."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def seal(given: Tensor, key: int, into: Tensor) -> None:
    """XOR of the bytes `given` with a key of 62 bits, into other bytes or the same; once more gives them back."""
    size = next(n for n in (8, 4, 2, 1) if given.numel() % n == 0)
    words = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[size]
    torch.bitwise_xor(given.view(words), key & ((1 << (8 * size - 2)) - 1), out=into.view(words))


@dataclass(frozen=True, slots=True)
class Want:
    """A tensor that needs a place; `bytes` is the size of its storage."""

    bytes: int
    dtype: DType
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0


def want_values(program: Program, values: Iterable[int]) -> list[Want]:
    """What the values of a plan need, storages as large as the plan says."""
    made = []
    for value in values:
        said = program.values[value]
        size = max(program.storages[said.storage].bytes, 1)
        made.append(Want(size, said.dtype, said.shape, said.stride, said.offset))
    return made


def want_dense(program: Program, values: Iterable[int]) -> list[Want]:
    """What row-major copies of the values of a plan need."""
    return [want_tensor(torch.empty(program.values[v].shape, dtype=dtype_of(program.values[v].dtype), device="meta"))
            for v in values]  # fmt: skip


def want_tensor(tensor: Tensor) -> Want:
    """What a row-major copy of `tensor` needs."""
    dense = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    size = max(dense.numel() * dense.element_size(), 1)
    dtype: Any = dtype_name(tensor.dtype)
    return Want(size, dtype, tuple(dense.shape), tuple(dense.stride()))


class Arena:
    """The judge's side of one block: places in order, each between two guards."""

    def __init__(self, device: Device, number: int, wants: Iterable[Want], *, guard: int = GUARD) -> None:
        """Raises what `Device.create` raises."""
        self.number = number
        self.places: list[Place] = []
        self._gaps: list[tuple[int, int]] = []
        at = 0
        for want in wants:
            start = -(-(at + guard) // ALIGN) * ALIGN
            self._gaps.append((at, start))
            at = start + want.bytes
            self.places.append(
                Place(block=number, start=start, bytes=want.bytes, dtype=want.dtype, shape=want.shape,
                      stride=want.stride, offset=want.offset)
            )  # fmt: skip
        self._gaps.append((at, at + guard))
        self.block, self.fd = device.create(at + guard)
        self._gaps[-1] = (at, self.block.nbytes)  # blocks have whole pages: no place to keep anything in
        self.views = [view(self.block, place) for place in self.places]
        self._guards = [self.block.bytes(start, end - start) for start, end in self._gaps]
        self._byte = 0

    def arm(self, byte: int) -> None:
        """Fills the guards with `byte`."""
        self._byte = byte
        for guard in self._guards:
            guard.fill_(byte)

    def broken(self) -> list[int]:
        """Guards that no longer hold their byte; guard i is before place i, the last is behind all."""
        return broken_guards([self])[0]

    def storage(self, index: int) -> Tensor:
        """All bytes of place `index`, uint8."""
        place = self.places[index]
        return self.block.bytes(place.start, place.bytes)

    def close(self) -> None:
        self.views.clear()
        self._guards.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.block.close()


def broken_guards(arenas: Sequence[Arena]) -> list[list[int]]:
    """`broken` of each; the device is waited for once."""
    flags = [[guard.ne(a._byte).any() for guard in a._guards] for a in arenas]
    told = iter(torch.stack([flag for of_one in flags for flag in of_one]).tolist())
    return [[i for i in range(len(of_one)) if next(told)] for of_one in flags]


@dataclass(frozen=True, slots=True)
class Sealed:
    """Where the inputs of a later call lie, which no kernel can read without the key of 62 bits."""

    places: list[Place]
    key: int


class Mapped:
    """The other side of the blocks: what a runner or a contestant was sent and has mapped, by number."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._blocks: dict[int, Block] = {}

    def map(self, fds: Sequence[int], blocks: Sequence[Sequence[int]]) -> None:
        """Maps (number, bytes) of `blocks` in order and takes the descriptors over. A known number gets new memory."""
        waiting = list(fds)
        try:
            for number, nbytes in blocks:
                if number in self._blocks:
                    self._blocks.pop(number).close()
                self._blocks[number] = self._device.map(waiting.pop(0), nbytes)
        finally:
            for fd in waiting:  # an open one keeps the memory of the device
                os.close(fd)

    def view(self, place: Any) -> Tensor:
        """The tensor at a `Place` as it came in a message. Raises ValueError, KeyError."""
        where = Place.model_validate_json(json.dumps(place))
        return view(self._blocks[where.block], where)

    def close(self) -> None:
        for block in self._blocks.values():
            block.close()
        self._blocks.clear()


class Flags:
    """Counters in a page of host memory that judge and runner map: `ready`, `go` and `done`, and `near`, which says
    that a go is about to come."""

    GO, DONE, READY, NEAR = 0, 64, 128, 192
    STOP = (1 << 64) - 1
    """A go that means that no further call comes."""

    def __init__(self, fd: int) -> None:
        """Maps the memory file `fd`, which stays the caller's."""
        self._page = mmap.mmap(fd, mmap.PAGESIZE)

    def set(self, counter: int, value: int) -> None:
        _COUNT.pack_into(self._page, counter, value)

    def wait(
        self, counter: int, value: int, seconds: float, *, unless: Callable[[], bool] = lambda: False,
        spin: float = _SPIN_SECONDS,
    ) -> bool:  # fmt: skip
        """Waits until a counter has the value; whether it came in time. After `spin` seconds it sleeps in between and
        asks `unless`."""
        start = time.perf_counter()
        while _COUNT.unpack_from(self._page, counter)[0] != value:
            waited = time.perf_counter() - start
            if waited > seconds:
                return False
            if waited > spin:
                if unless() and _COUNT.unpack_from(self._page, counter)[0] != value:
                    return False
                time.sleep(50e-6)
        return True

    @staticmethod
    def call(turn: int, index: int) -> int:
        """The value of `go`, `near` and `done` for one call of a command."""
        return turn << 20 | (index + 1)

    def wait_go(self, turn: int, index: int, seconds: float) -> bool:
        """Waits for the go of a call; False where none came or no further call comes. Sleeps only until one is near, so
        that a call does not begin late."""
        value, start = self.call(turn, index), time.perf_counter()
        while (now := _COUNT.unpack_from(self._page, self.GO)[0]) != value:
            if now == self.STOP or time.perf_counter() - start > seconds:
                return False
            if _COUNT.unpack_from(self._page, self.NEAR)[0] != value:
                time.sleep(50e-6)
        return True

    def close(self) -> None:
        self._page.close()
