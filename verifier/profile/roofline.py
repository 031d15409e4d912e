"""Time of library (aten) steps by roofline, and what every timed step shares: its record and the state of L2.

A library call takes the largest of its DRAM bytes (in and out, once each), its L2 bytes and its FLOP at the
rate of its precision, plus one launch. A product whose output has few tiles reaches the rate in proportion;
attention reaches a fixed share of it. The shares are round figures. Element-wise arithmetic is taken as free
beside its bytes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

from verifier.profile import library
from verifier.profile.library import LibraryCall
from verifier.target import Target

LANE_EFFICIENCY = 0.8
"""Share of the peak that lane operations reach."""
_LIBRARY_MEMORY = 0.9
"""Share of the sustained DRAM rate that library kernels reach."""
_ATTENTION_EFFICIENCY = 0.6
_MASKED_ATTENTION_EFFICIENCY = 0.35


@dataclass(frozen=True, slots=True)
class StepTime:
    """Time of one step and its parts, seconds. `bound` names the part that decides."""

    name: str
    seconds: float
    bound: str
    bytes: int
    """DRAM traffic."""
    flops: int
    parts: Mapping[str, float]
    launches: int = 1


class L2:
    """Which storages an earlier step left in L2. Least recently used first; whole storages only."""

    def __init__(self, target: Target) -> None:
        self._capacity = int(0.7 * target.l2_bytes)
        self._held: dict[int, int] = {}

    def cold(self, storage: int) -> bool:
        return storage not in self._held

    def copy(self) -> L2:
        """A copy to try an alternative on."""
        other = copy.copy(self)
        other._held = dict(self._held)
        return other

    def touch(self, storage: int, size: int) -> None:
        self._held.pop(storage, None)
        if size > self._capacity:
            return
        self._held[storage] = size
        while sum(self._held.values()) > self._capacity:
            self._held.pop(next(iter(self._held)))


def estimate_library(call: LibraryCall, target: Target, l2: L2 | None = None) -> StepTime:
    """Roofline of one aten step: bytes in and out, FLOP at the rate of its precision. Updates `l2`."""
    l2 = l2 if l2 is not None else L2(target)
    if call.role == "alloc":
        return StepTime(call.name, 0.0, "launch", 0, 0, {}, launches=0)
    inputs = {t.storage: max(t.bytes, 0) for t in call.inputs}
    read = sum(size for storage, size in inputs.items() if l2.cold(storage))
    written = sum(t.bytes for t in call.outputs)
    if call.role in ("fill", "random"):
        read = 0
    for view in (*call.inputs, *call.outputs):
        l2.touch(view.storage, view.bytes)
    moved = read + written
    through = sum(inputs.values()) + written
    count = library.flops(call)
    rate, kind = _library_rate(call, target)
    parts = {
        "memory": moved / (target.dram_rate * target.dram_sustained * _LIBRARY_MEMORY),
        "l2": through / target.l2_rate,
        kind: count / rate,
    }
    busy = max(parts.values())
    bound = max(parts, key=lambda k: parts[k]) if busy > target.launch_seconds else "launch"
    parts["launch"] = target.launch_seconds
    return StepTime(call.name, busy + target.launch_seconds, bound, moved, count, parts)


def _library_rate(call: LibraryCall, target: Target) -> tuple[float, str]:
    """FLOP per second that the library reaches on this call, and the pipe's name."""
    kind = library.operand_class(call)
    if kind == "fp32" or kind not in target.tensor_rates:
        return 2 * target.fp32_rate * LANE_EFFICIENCY * _library_fill(call, target), "fp32"
    rate = target.tensor_rates[kind] * target.tensor_sustained
    if call.name in library.ATTENTIONS:
        masked = len(call.inputs) > 3
        return rate * (_MASKED_ATTENTION_EFFICIENCY if masked else _ATTENTION_EFFICIENCY), "tensor"
    return rate * _library_fill(call, target), "tensor"


def _library_fill(call: LibraryCall, target: Target) -> float:
    """Share of the multiprocessors that an output of few tiles keeps busy; smaller tiles and split-K save
    a quarter."""
    if call.name not in library.MATMULS | library.CONVOLUTIONS:
        return 1.0
    waves = library.output_tiles(call) / target.sms
    return max(0.25, waves / math.ceil(waves))
