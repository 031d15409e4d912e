"""The memory of one program under replay: which torch storage stands for each storage of the plan.

While a plan is checked, what it allocates has guards around it, as slots have: an allocator packs tensors close, so
that a store past the end of one would land in another or in memory of nobody, and fault nowhere.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator

import torch
from torch import Tensor

from verifier.plan.schema import Program
from verifier.specs import dtype_of, span

NAN_BYTE = 0xFF
"""A value of these bytes is NaN in every floating dtype."""
ODD_BYTE = 0xAA
GUARD = 64 << 10
"""Bytes on either side of all that a kernel is given or writes."""


def poison_byte(dtype: torch.dtype) -> int:
    """What fills a tensor that is to be written: judge, runner and contestant tell no call from another by it."""
    return NAN_BYTE if dtype.is_floating_point or dtype.is_complex else ODD_BYTE


def guard_bytes() -> Iterator[int]:
    """What fills guards, time after time: NaN shows a read past the end whose product with zero is added up, and a
    secret byte shows a write of any value."""
    while True:
        yield NAN_BYTE
        yield 1 + secrets.randbelow(NAN_BYTE - 2)


def as_stored(tensor: Tensor) -> Tensor:
    """A tensor that torch copies byte by byte: to copy a bool makes it 0 or 1, and poison true."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


class ReplayError(RuntimeError):
    """A plan that cannot be replayed as it stands. One sentence."""


class Memory:
    """Storages by id. Only what the plan made is there; reading anything else raises ReplayError."""

    def __init__(self, program: Program, device: torch.device) -> None:
        self._program, self._device = program, device
        self.zeros = False
        """`poison` fills with zeros, to tell what depends on memory that nothing wrote."""
        self._held: dict[int, torch.UntypedStorage] = {}
        self._views: dict[int, Tensor] = {}
        self.guarded = False
        """Whether allocations get guards from now on."""
        self._guards: dict[int, list[Tensor]] = {}
        self._bytes, self._broken = guard_bytes(), torch.zeros((), dtype=torch.bool, device=device)
        self._byte = next(self._bytes)
        dtypes = ((v.storage, dtype_of(v.dtype)) for v in program.values)
        self._floating = {storage for storage, dtype in dtypes if dtype.is_floating_point or dtype.is_complex}

    def __contains__(self, storage: int) -> bool:
        return storage in self._held

    def value(self, value: int) -> Tensor:
        """The view of a plan value. Raises ReplayError where its storage is missing or too small."""
        if value not in self._views:
            said = self._program.values[value]
            held = self._held.get(said.storage)
            if held is None:
                raise ReplayError(f"value {value} is used and nothing made its storage {said.storage}")
            dtype = dtype_of(said.dtype)
            last = said.offset + span(said.shape, said.stride) if 0 not in said.shape else 0
            if last * dtype.itemsize > held.nbytes():
                raise ReplayError(f"value {value} leaves its storage, which has {held.nbytes()} bytes here")
            empty = torch.empty(0, dtype=dtype, device=held.device)
            self._views[value] = empty.set_(held, said.offset, said.shape, said.stride)
        return self._views[value]

    def address(self, storage: int, offset: int) -> int:
        """Device address of a byte of a storage."""
        held = self._held.get(storage)
        if held is None:
            raise ReplayError(f"a kernel is given storage {storage}, which nothing made")
        return held.data_ptr() + offset

    def hold(self, storage: int, made: torch.UntypedStorage) -> None:
        """`made` stands for the storage from now on."""
        self.drop(storage)
        self._held[storage] = made

    def drop(self, storage: int) -> None:
        """Forgets a storage, so that its memory can serve again."""
        for guard in self._guards.pop(storage, ()):
            self._broken |= (guard != self._byte).any()
        if self._held.pop(storage, None) is not None:
            for value in [v for v in self._views if self._program.values[v].storage == storage]:
                del self._views[value]

    def allocate(self, storage: int) -> None:
        """Fresh memory of the plan's size, at least one byte."""
        said = self._program.storages[storage]
        size, cuda = max(said.bytes, 1), said.device == "cuda"
        around = GUARD if self.guarded and cuda else 0
        made = torch.empty(size + 2 * around, dtype=torch.uint8, device=self._device if cuda else torch.device("cpu"))
        if not around:
            self.hold(storage, made.untyped_storage())
            return
        self.hold(storage, part_of(made, around, size).untyped_storage())
        self._guards[storage] = [made[:around].fill_(self._byte), made[around + size :].fill_(self._byte)]

    def written_past(self) -> bool:
        """Whether a guard was ever changed since the last time that this was asked. From then on guards have another
        byte."""
        last, self._byte = self._byte, next(self._bytes)
        for guard in (g for guards in self._guards.values() for g in guards):
            self._broken |= (guard != last).any()
            guard.fill_(self._byte)
        found = bool(self._broken)
        self._broken.zero_()
        return found

    def poison(self, storage: int) -> None:
        """Fills a storage so that a read of what nobody wrote shows: NaN, or an odd number."""
        byte = NAN_BYTE if storage in self._floating else ODD_BYTE
        self.bytes(storage).fill_(0 if self.zeros else byte)

    def bytes(self, storage: int) -> Tensor:
        """The whole storage as uint8."""
        held = self._held.get(storage)
        if held is None:
            raise ReplayError(f"storage {storage} must be restored and nothing made it")
        return torch.empty(0, dtype=torch.uint8, device=held.device).set_(held)

    def load_constants(self) -> None:
        """Allocates the plan's constants and fills them with their bytes."""
        for constant in self._program.constants:
            self.allocate(constant.storage)
            data = bytearray(base64.b64decode(constant.data))
            if data:
                self.bytes(constant.storage)[: len(data)].copy_(torch.frombuffer(data, dtype=torch.uint8))


def part_of(whole: Tensor, start: int, count: int) -> Tensor:
    """`count` bytes of a dense uint8 tensor in a torch storage of its own. Dies with `whole` on a GPU."""
    if whole.is_cuda:
        return foreign(whole.data_ptr() + start, count, whole.device)
    return torch.from_numpy(whole.numpy()[start : start + count])


def foreign(address: int, count: int, device: torch.device) -> Tensor:
    """`count` bytes of memory that is not torch's, as a uint8 tensor that does not keep it alive.

    `torch.as_tensor` takes such memory by the CUDA Array Interface, and never lets go of its shape and its address.
    """
    storage = torch._C._construct_storage_from_data_pointer(address, device, count)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
