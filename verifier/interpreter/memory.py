"""Checked memory: stands where the interpreter's C++ loads, stores and atomics stand.

Kernels get made-up addresses. Each tensor storage of a launch owns a slot of 2^44 bytes of address space with
the storage in the middle, so any offset that an int32 index can reach stays inside the slot and an access
into a neighbour tensor is never mistaken for a legal one. A legal address is translated and passed on; a bad
lane is reported and switched off, so the process lives. Everything is vectorised over the lanes of a tile.

Races are found by the order in which the interpreter happens to run programs and by plain accesses only, so
they are advice: two programs that store the same value are reported too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from verifier.interpreter.limits import Unsupported
from verifier.interpreter.sampling import Coverage

Array = npt.NDArray[Any]

SLOT_BITS = 44
MIDDLE = 1 << (SLOT_BITS - 1)
RACE_BYTES = 256 << 20
"""Storages larger than this are not watched for races."""
NONE, MANY, ATOMIC = -1, -2, -3
NEARLY = 1e-2
"""Relative difference, of each element, below which a kernel has left a number as it was."""
MAX_FINDINGS = 64


@dataclass(slots=True)
class Region:
    """One storage of a launch. `base` is its made-up address, `real` the true one, `size` in bytes."""

    name: str
    describe: str
    base: int
    real: int
    size: int
    shift: int
    """log2 of the element size: the grain of race detection."""
    writer: npt.NDArray[np.int32] | None = None
    reader: npt.NDArray[np.int32] | None = None

    def watch(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None:
        """(last writer, reader) per element as program numbers, None for a storage that is too large."""
        if self.size > RACE_BYTES:
            return None
        if self.writer is None or self.reader is None:
            count = (self.size >> self.shift) + 1
            self.writer, self.reader = (np.full(count, NONE, dtype=np.int32) for _ in range(2))
        return self.writer, self.reader


@dataclass(slots=True)
class Finding:
    """An observation, counted. `lanes` sums over all programs."""

    severity: str
    code: str
    message: str
    kernel: str
    line: int | None
    lanes: int = 0


@dataclass(slots=True)
class LineTraffic:
    """Bytes that one line asked for, and lanes that a mask switched off."""

    loaded: int = 0
    stored: int = 0
    atomic: int = 0
    masked_off: int = 0


@dataclass
class Memory:
    """`real` is Triton's C++ module; `filename` is the candidate's file, whose lines are reported."""

    real: Any
    filename: str
    kernel: str = ""
    program: int = 0
    regions: dict[int, Region] = field(default_factory=dict)
    findings: dict[tuple[str, str, int | None, str], Finding] = field(default_factory=dict)
    traffic: dict[tuple[int, str], LineTraffic] = field(default_factory=dict)
    coverage: Coverage | None = None
    """Set when only a sample of the programs runs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    # a launch

    def begin(self, kernel: str) -> None:
        self.kernel = kernel
        self.program = 0
        self.regions = {}

    def add(self, name: str, real: int, size: int, itemsize: int, describe: str) -> int:
        """Gives the storage at `real` a slot and returns its made-up address. The same storage keeps its
        slot.
        """
        for region in self.regions.values():
            if region.real == real and region.size == size:
                return region.base
        slot = len(self.regions) + 1
        base = (slot << SLOT_BITS) + MIDDLE
        self.regions[slot] = Region(name, describe, base, real, size, max(itemsize, 1).bit_length() - 1)
        return base

    # what the interpreter calls

    def load(self, ptrs: Array, mask: Array, other: Array, dtype: Any) -> Array:
        address, lanes = self._access("load", ptrs, mask, np.dtype(dtype).itemsize)
        result: Array = self.real.load(address, lanes, other, dtype)
        return result

    def store(self, ptrs: Array, value: Array, mask: Array) -> None:
        address, lanes = self._access("store", ptrs, mask, np.asarray(value).dtype.itemsize)
        self.real.store(address, value, lanes)

    def atomic_rmw(self, op: Any, ptrs: Array, value: Array, mask: Array, semantic: Any) -> Array:
        address, lanes = self._access("atomic", ptrs, mask, np.asarray(value).dtype.itemsize)
        result: Array = self.real.atomic_rmw(op, address, value, lanes, semantic)
        return result

    def atomic_cas(self, ptrs: Array, expected: Array, value: Array, semantic: Any) -> Array:
        everywhere = np.ones(np.shape(ptrs), dtype=bool)
        address, lanes = self._access("atomic", ptrs, everywhere, np.asarray(value).dtype.itemsize)
        if not lanes.all():
            raise Unsupported("a compare-and-swap outside every tensor")
        result: Array = self.real.atomic_cas(address, expected, value, semantic)
        return result

    # checks

    def _access(self, op: str, ptrs: Array, mask: Array, size: int) -> tuple[Array, Array]:
        """True addresses and the lanes that may use them. Counts traffic, reports what is out of bounds."""
        address = np.asarray(ptrs, dtype=np.uint64)
        lanes = np.asarray(mask, dtype=bool)
        if lanes.shape != address.shape:
            lanes = np.broadcast_to(lanes, address.shape)
        active = address[lanes]
        line = self._line()
        self._count(op, line, active.size * size, address.size - active.size)
        if not active.size:
            return address, lanes
        low, high = int(active.min()), int(active.max())
        region = self.regions.get(low >> SLOT_BITS)
        if region is None or low < region.base or high + size > region.base + region.size:
            return self._careful(op, address, lanes, size, line)
        self._watch(op, region, active - np.uint64(region.base), size, line)
        return address - np.uint64((region.base - region.real) % (1 << 64)), lanes

    def _careful(self, op: str, address: Array, lanes: Array, size: int, line: int | None) -> tuple[Array, Array]:
        """The slow path: lanes in several storages or outside of them."""
        allowed = np.zeros(address.shape, dtype=bool)
        translated = address.copy()
        slots = (address >> np.uint64(SLOT_BITS)).astype(np.int64)
        for slot in np.unique(slots[lanes]).tolist():
            mine = lanes & (slots == slot)
            region = self.regions.get(slot)
            if region is None:
                self._nowhere(op, int(address[mine][0]), int(mine.sum()), line)
                continue
            offset = address.astype(np.int64) - np.int64(region.base)
            inside = mine & (offset >= 0) & (offset + size <= region.size)
            if (outside := mine & ~inside).any():
                self._out_of_bounds(op, region, int(offset[outside][0]), int(outside.sum()), lanes.size, line)
            if inside.any():
                self._watch(op, region, offset[inside].astype(np.uint64), size, line)
            translated[inside] = (offset[inside] + np.int64(region.real)).astype(np.uint64)
            allowed |= inside
        return translated, allowed

    def _nowhere(self, op: str, address: int, count: int, line: int | None) -> None:
        signed = address - (1 << 64) if address >= 1 << 63 else address
        if abs(signed) >= 1 << 33:
            raise Unsupported("a pointer that a kernel loads from memory")
        message = f"{op} through a null pointer: {count} lanes of program {self.program}"
        self.note("error", "out-of-bounds", message, line, lanes=count)

    def _out_of_bounds(self, op: str, region: Region, offset: int, count: int, total: int, line: int | None) -> None:
        where = f"{offset - region.size} bytes past the end" if offset >= 0 else f"{-offset} bytes before the start"
        message = (
            f"out-of-bounds {op} in kernel `{self.kernel}`: {count} of {total} lanes of program "
            f"{self.program}; the first is at byte {offset} of `{region.name}`, {where} "
            f"({region.describe}, {region.size} bytes)"
        )
        self.note("error", "out-of-bounds", message, line, lanes=count, about=region.name)

    def _watch(self, op: str, region: Region, offset: Array, size: int, line: int | None) -> None:
        if self.coverage is not None:
            self.coverage.access(op, region.real, region.size, offset.astype(np.int64), size)
        watched = region.watch()
        if watched is None:
            return
        writer, reader = watched
        index = (offset >> np.uint64(region.shift)).astype(np.int64)
        me = self.program
        last = writer[index]
        others = (last != NONE) & (last != me) & (last != ATOMIC)
        if op == "load":
            if others.any():
                self._race("read-after-write-race", "reads", "wrote", region, index, last, others, line)
            seen = reader[index]
            reader[index] = np.where((seen == NONE) | (seen == me), np.int32(me), np.int32(MANY))
            return
        if op == "atomic":
            if others.any():
                self._race("write-write-race", "updates", "stored", region, index, last, others, line)
            writer[index] = ATOMIC
            return
        if (clash := others | (last == ATOMIC)).any():
            self._race("write-write-race", "stores", "stored", region, index, last, clash, line)
        seen = reader[index]
        if (clash := (seen != NONE) & (seen != me)).any():
            self._race("write-after-read-race", "stores", "read", region, index, seen, clash, line)
        writer[index] = me

    def _race(
        self,
        code: str,
        now: str,
        before: str,
        region: Region,
        index: Array,
        who: Array,
        bad: Array,
        line: int | None,
    ) -> None:
        first, other = int(index[bad][0]), int(who[bad][0])
        named = {MANY: "other programs", ATOMIC: "an atomic operation of a program"}.get(other, f"program {other}")
        message = (
            f"program {self.program} of kernel `{self.kernel}` {now} element {first} of `{region.name}`, "
            f"which {named} {before} in the same launch; programs run in any order"
        )
        self.note("advice", code, message, line, lanes=int(bad.sum()), about=region.name)

    def spoil(self, tensors: list[torch.Tensor], before: list[torch.Tensor]) -> bool:
        """Changes, after a launch, every element that it stored: a number x becomes 1.5 x + 1, a bool the other.

        `before` has the whole storages as they were. Returns whether all that was stored is one of them, but for what
        a right result may be off by.
        """
        only_copies = True
        for tensor in tensors:
            region = next((r for r in self.regions.values() if r.real == tensor.untyped_storage().data_ptr()), None)
            if region is None or region.writer is None:
                continue
            own = flat(tensor)
            stored = torch.from_numpy(region.writer[: own.numel()] != NONE)
            region.writer.fill(NONE)  # another view of this storage finds nothing left to change
            old = own[stored]
            same = (b for b in before if b.numel() == own.numel() and b.dtype == own.dtype)
            only_copies = only_copies and any(_same(b[stored], old) for b in same)
            own[stored] = ~old if old.dtype == torch.bool else (old.double() * 1.5 + 1).to(old.dtype)
        return only_copies

    # records

    def note(
        self, severity: str, code: str, message: str, line: int | None, *, lanes: int = 1, about: str = ""
    ) -> None:
        """Adds a finding; the first message per code, kernel, line and tensor is kept."""
        key = (code, self.kernel, line, about)
        if key not in self.findings:
            if len(self.findings) >= MAX_FINDINGS:
                return
            self.findings[key] = Finding(severity, code, message, self.kernel, line)
        self.findings[key].lanes += lanes

    def here(self) -> int | None:
        """Line of the innermost frame of the candidate's file."""
        return self._line()

    def _line(self) -> int | None:
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_filename == self.filename:
                return frame.f_lineno
            frame = frame.f_back  # type: ignore[assignment]
        return None

    def _count(self, op: str, line: int | None, moved: int, masked_off: int) -> None:
        entry = self.traffic.setdefault((line or 0, self.kernel), LineTraffic())
        entry.masked_off += masked_off
        if op == "load":
            entry.loaded += moved
        elif op == "store":
            entry.stored += moved
        else:
            entry.atomic += moved


def _same(before: torch.Tensor, after: torch.Tensor) -> bool:
    if not before.is_floating_point():
        return torch.equal(before, after)
    return torch.allclose(after.double(), before.double(), rtol=NEARLY, atol=0.0, equal_nan=True)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage of a tensor as one axis of its dtype."""
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
