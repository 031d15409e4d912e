"""Sampled programs: at full sizes only some programs of a launch run, and only what they stored counts.

`choose` picks the programs: first, last and corners of the grid, the rest at random from equal shares of it. A
grid that is small enough runs whole. `Coverage` knows which bytes of each storage the sampled programs stored
and refuses (`NotSampled`) whatever would use the other bytes:

- an atomic operation of a sampled launch: it accumulates over programs;
- a load, by a later launch, of a byte that a sampled launch may have left out;
- a second sampled launch that stores in the same storage;
- a library call that takes such a storage, except to look at its shape or to make a view of it.

All of this runs in the candidate's process, so the mask of elements that count is the candidate's word: a
hostile one can hide its wrong elements. The run on a GPU compares all of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from verifier.interpreter.limits import NotSampled
from verifier.specs import leaves

Grid = tuple[int, int, int]
Mask = npt.NDArray[np.bool_]

_MAKERS = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "new", "zeros",
     "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full"}
)  # fmt: skip
"""Functions that make a tensor and read at most the shape of another."""
_LOOKS = frozenset(
    {"__get__", "__len__", "size", "stride", "dim", "ndimension", "numel", "nelement", "element_size", "data_ptr",
     "storage_offset", "untyped_storage", "is_contiguous", "is_floating_point", "is_complex", "is_signed",
     "get_device", "view", "view_as", "reshape", "flatten", "unflatten", "transpose", "permute", "t", "movedim",
     "moveaxis", "swapaxes", "swapdims", "squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to", "narrow",
     "select", "__getitem__", "contiguous", "detach", "as_strided", "chunk", "split", "unbind", "to", "type",
     "type_as", "float", "half", "bfloat16", "double", "cuda", "reshape_as"}
)  # fmt: skip
"""Functions that read no element as long as what they return shares its storage with their argument."""


def choose(grid: Grid, count: int, seed: str) -> Sequence[int]:
    """Numbers of the programs that run, ascending; x varies fastest. All of them if there are at most
    `count` (at least 8).
    """
    x, y, z = grid
    total = x * y * z
    if total <= count:
        return range(total)
    chosen = {i + x * (j + y * k) for i in {0, x - 1} for j in {0, y - 1} for k in {0, z - 1}}
    shares, source = count - len(chosen), random.Random(seed)
    for share in range(shares):
        chosen.add(source.randrange(total * share // shares, total * (share + 1) // shares))
    return sorted(chosen)


@dataclass(slots=True)
class _Part:
    """A storage that a sampled launch of `kernel` stored in: which bytes."""

    kernel: str
    stored: Mask


@dataclass
class Coverage:
    """What the sampled launches of one run of `forward` stored. One per process; `reset` before each run."""

    count: int
    seed: str
    ran: int = 0
    total: int = 0
    """Programs that ran and programs of all launches, since `reset`."""
    refusal: str = ""
    """The first refusal, so that a candidate that swallows the exception gains nothing."""
    _launches: int = 0
    _kernel: str = ""
    _whole: bool = True
    _parts: dict[int, _Part] = field(default_factory=dict)
    _current: dict[int, _Part] = field(default_factory=dict)
    _arguments: dict[int, int] = field(default_factory=dict)
    """Address to size of the storages of this launch."""
    _given: set[int] = field(default_factory=set)
    """Storages that a sampled launch got."""
    _fresh: set[int] = field(default_factory=set)
    """Storages from `_MAKERS` that nothing has filled."""
    _held: list[Any] = field(default_factory=list)
    """Keeps storages alive, so that no address is used twice."""

    def reset(self) -> None:
        self.ran = self.total = 0
        for kept in (self._parts, self._current, self._arguments, self._given, self._fresh, self._held):
            kept.clear()

    # launches

    def begin(self, kernel: str, grid: Grid) -> Sequence[int]:
        """The programs of the next launch that run."""
        total = grid[0] * grid[1] * grid[2]
        chosen = choose(grid, self.count, f"{self.seed}:{self._launches}")
        self._launches += 1
        self.ran, self.total = self.ran + len(chosen), self.total + total
        self._kernel, self._whole = kernel, len(chosen) == total
        self._current, self._arguments = {}, {}
        return chosen

    def argument(self, tensor: Tensor) -> None:
        """A tensor of the launch that began."""
        storage = tensor.untyped_storage()
        self._held.append(storage)
        self._arguments[storage.data_ptr()] = storage.nbytes()

    def end(self) -> None:
        """After the programs of a launch."""
        if self._whole:
            return
        self._given |= self._arguments.keys()
        for address in self._fresh & self._arguments.keys() - self._current.keys() - self._parts.keys():
            self._current[address] = _Part(self._kernel, np.zeros(self._arguments[address], dtype=bool))
        self._parts |= self._current

    def access(self, op: str, address: int, size: int, offset: npt.NDArray[Any], width: int) -> None:
        """An access of the running launch: bytes `offset` to `offset + width` of the storage at `address`."""
        if op == "atomic" and not self._whole:
            self._refuse(f"kernel `{self._kernel}` uses atomics, which accumulate over programs that did not run")
        part = self._parts.get(address)
        if part is not None and op != "store" and not all(part.stored[offset + i].all() for i in range(width)):
            self._refuse(f"kernel `{self._kernel}` reads what kernel `{part.kernel}` stores, of which {_SOME}")
        if op == "load":
            return
        if self._whole:
            self._fresh.discard(address)
        else:
            if part is not None:
                self._refuse(f"kernels `{part.kernel}` and `{self._kernel}` store in the same tensor and {_SOME}")
            part = self._current.setdefault(address, _Part(self._kernel, np.zeros(0, dtype=bool)))
            if part.stored.size != size:
                part.stored = np.zeros(size, dtype=bool)
        if part is not None:
            for i in range(width):
                part.stored[offset + i] = True

    # library calls

    def library(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """A call of a torch function that has run."""
        name = getattr(func, "__name__", "")
        made = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in leaves(result)}
        if name in _MAKERS:
            self._held += made.values()
            self._fresh |= made.keys()
            return
        taken = {t.untyped_storage().data_ptr() for t in leaves([*args, *kwargs.values()])}
        if name in _LOOKS and made.keys() <= taken:
            return
        self._fresh -= taken
        if used := taken & self._parts.keys():
            kernel = self._parts[min(used)].kernel
            self._refuse(f"`{name}` takes what kernel `{kernel}` stores, of which {_SOME}")

    # outputs

    def elements(self, output: Tensor) -> Mask:
        """Which elements of `output` count, row-major: all of their bytes were stored by programs that ran, or
        no sampled launch had to do with the storage.
        """
        storage = output.untyped_storage()
        part = self._parts.get(storage.data_ptr())
        if part is None:
            return np.full(output.numel(), storage.data_ptr() not in self._given)
        width = output.element_size()
        shape, strides = (*output.shape, width), (*(s * width for s in output.stride()), 1)
        stored = torch.from_numpy(part.stored).as_strided(shape, strides, output.storage_offset() * width)
        counts: Mask = stored.all(-1).reshape(-1).numpy()
        return counts

    def _refuse(self, reason: str) -> None:
        self.refusal = self.refusal or reason
        raise NotSampled(reason)


_SOME = "only a sample of the programs ran"
