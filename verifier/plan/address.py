"""A fake address space: every storage of a fake tensor has its own address, and an address leads back to the
storage.

Addresses are 512-byte aligned, as CUDA's allocator gives them, so that Triton specialises on divisibility as
it would on the GPU; a view at an odd offset is honestly unaligned. A gap behind every storage keeps a pointer
past the end unresolved.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

import torch

ALIGNMENT = 512
SPAN = 0x0400_0000_0000_0000
"""Bytes from the first address to where no address lies any more."""


@dataclass(slots=True)
class StorageRecord:
    """One storage. `data` holds the bytes of a constant; `origin` is one of the schema's origins."""

    id: int
    base: int
    nbytes: int
    device: str
    origin: str
    data: bytes | None = None
    keep: Any = field(default=None, repr=False)


class AddressSpace:
    """Storages by identity and by address. Keeps every storage alive, so that an identity is never used
    twice."""

    def __init__(self, first: int, gap: int) -> None:
        """`first` is the first address, `gap` the bytes between two storages."""
        self.records: list[StorageRecord] = []
        self._by_handle: dict[int, StorageRecord] = {}
        self._bases: list[int] = []
        self._first, self._gap = first, gap
        self._next = first

    def known(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._by_handle

    def record(self, tensor: torch.Tensor, origin: str) -> StorageRecord:
        """The storage of `tensor`; a new one gets the next address and `origin`."""
        storage = tensor.untyped_storage()
        found = self._by_handle.get(storage._cdata)
        if found is not None:
            return found
        nbytes = int(storage.nbytes())
        made = StorageRecord(len(self.records), self._next, nbytes, tensor.device.type, origin, keep=storage)
        self.records.append(made)
        self._by_handle[storage._cdata] = made
        self._bases.append(made.base)
        self._next += -(-(nbytes + self._gap) // ALIGNMENT) * ALIGNMENT
        return made

    def address(self, tensor: torch.Tensor, origin: str) -> int:
        """What `tensor.data_ptr()` answers; 0 for an empty tensor, as torch does."""
        if tensor.numel() == 0:
            return 0
        return self.record(tensor, origin).base + int(tensor.storage_offset()) * tensor.element_size()

    def contains(self, number: int) -> bool:
        """Whether an integer can only be an address of this space."""
        return self._first <= number < self._first + SPAN

    def resolve(self, address: int) -> tuple[StorageRecord, int] | None:
        """Storage and byte offset that an address means; None outside every storage."""
        at = bisect.bisect_right(self._bases, address) - 1
        if at < 0:
            return None
        found = self.records[at]
        offset = address - found.base
        return (found, offset) if offset < max(found.nbytes, 1) else None
