"""Memory of a launch on made-up addresses, on torch tensors: what is outside every storage is reported, not touched.

Each storage of a launch lies in the middle of a slot of 2^44 bytes, so an access past its end never lands in another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.interpreter.limits import Unsupported

SLOT_BITS = 44
MIDDLE = 1 << (SLOT_BITS - 1)
_ATOMICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "fadd": torch.add, "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor,
    "max": torch.maximum, "min": torch.minimum, "exch": lambda old, new: new,
}  # fmt: skip


class OutOfBounds(Exception):
    """A kernel of the plan reaches outside every tensor that it was given."""


@dataclass(slots=True)
class TileMemory:
    """Storages by slot, as uint8 tensors."""

    _held: list[Tensor] = field(default_factory=list)
    _slots: dict[int, int] = field(default_factory=dict)
    """Address of a storage to its slot."""
    _views: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def add(self, storage: Tensor) -> int:
        """Made-up address of the first byte of `storage`, uint8 of one dimension."""
        address = storage.data_ptr()
        if address not in self._slots:
            self._held.append(storage)
            self._slots[address] = len(self._held)
        return (self._slots[address] << SLOT_BITS) + MIDDLE

    def load(self, pointers: Tensor, mask: Tensor | None, other: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Values of `dtype`; where the mask is false `other`, or zero."""
        raw = torch.uint8 if dtype.itemsize == 1 else dtype  # fp8 and bool cannot be indexed everywhere
        made = torch.zeros(pointers.shape, dtype=raw)
        if other is not None:
            made = made.copy_(other.contiguous().view(raw) if raw != other.dtype else other)
        lanes = _lanes(pointers, mask)
        flat = made.reshape(-1)
        for where, values, index in self._places(pointers.reshape(-1)[lanes], lanes, raw):
            flat[where] = values[index]
        return made.view(dtype) if raw != dtype else made

    def store(self, pointers: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Of several lanes with one address any may win."""
        raw = torch.uint8 if value.dtype.itemsize == 1 else value.dtype
        value = value.expand(pointers.shape).contiguous()
        flat = (value.view(raw) if raw != value.dtype else value).reshape(-1)
        lanes = _lanes(pointers, mask)
        for where, values, index in self._places(pointers.reshape(-1)[lanes], lanes, raw):
            values[index] = flat[where]

    def update(self, kind: str, pointers: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """An atomic operation lane by lane; what was there before."""
        if kind not in _ATOMICS:
            raise Unsupported(f"the atomic operation `{kind}`")
        made = torch.zeros(pointers.shape, dtype=value.dtype)
        old, new, lanes = made.reshape(-1), value.expand(pointers.shape).reshape(-1), _lanes(pointers, mask)
        for where, values, index in self._places(pointers.reshape(-1)[lanes], lanes, value.dtype):
            if len(set(index.tolist())) == index.numel():
                old[where] = values[index]
                values[index] = _ATOMICS[kind](old[where], new[where]).to(values.dtype)
                continue
            for lane, at in zip(where.tolist(), index.tolist(), strict=True):
                old[lane] = values[at]
                values[at] = _ATOMICS[kind](values[at].clone(), new[lane])
        return made

    def swap(self, pointers: Tensor, expected: Tensor, value: Tensor) -> Tensor:
        """Compare and swap lane by lane; what was there before."""
        made = torch.zeros(pointers.shape, dtype=value.dtype)
        old, lanes = made.reshape(-1), _lanes(pointers, None)
        wanted, new = (t.expand(pointers.shape).reshape(-1) for t in (expected, value))
        for where, values, index in self._places(pointers.reshape(-1)[lanes], lanes, value.dtype):
            for lane, at in zip(where.tolist(), index.tolist(), strict=True):
                old[lane] = values[at]
                if bool(values[at] == wanted[lane]):
                    values[at] = new[lane]
        return made

    def _places(self, active: Tensor, lanes: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
        """By slot: the lanes in it, the storage as `dtype`, and the elements that the lanes mean."""
        if not active.numel():
            return []
        low, high = int(active.min()) >> SLOT_BITS, int(active.max()) >> SLOT_BITS
        slots = [low] if low == high else torch.unique(active >> SLOT_BITS).tolist()
        found = []
        for slot in slots:
            mine = slice(None) if len(slots) == 1 else (active >> SLOT_BITS) == slot
            offset = active[mine] - ((slot << SLOT_BITS) + MIDDLE)
            found.append((lanes[mine], *self._elements(slot, offset, dtype)))
        return found

    def _elements(self, slot: int, offset: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        size = dtype.itemsize
        if not 1 <= slot <= len(self._held):
            raise OutOfBounds("through a pointer to none of its tensors")
        storage = self._held[slot - 1]
        first, last = int(offset.min()), int(offset.max()) + size
        if first < 0 or last > storage.numel():
            raise OutOfBounds(f"at bytes {first} to {last} of a tensor of {storage.numel()} bytes")
        if size > 1 and bool((offset % size != 0).any()):
            raise Unsupported("an address that is no multiple of its element's size")
        key = (slot, dtype)
        if key not in self._views:
            self._views[key] = storage[: storage.numel() // size * size].view(dtype)
        return self._views[key], offset // size


def _lanes(pointers: Tensor, mask: Tensor | None) -> Tensor:
    """Flat numbers of the lanes that are on."""
    if mask is None:
        return torch.arange(pointers.numel())
    return mask.expand(pointers.shape).reshape(-1).nonzero().reshape(-1)
