"""Checked memory without a kernel: addresses in, findings, races and traffic out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from verifier.interpreter.limits import Unsupported
from verifier.interpreter.memory import RACE_BYTES, Memory


class FlatMemory:
    """Stands for Triton's C++ module: one byte array whose first byte is at address 1000."""

    def __init__(self) -> None:
        self.bytes = np.zeros(4096, dtype=np.uint8)

    def load(self, ptrs: Any, mask: Any, other: Any, dtype: Any) -> Any:
        out = np.array(other, dtype=dtype)
        for i in np.ndindex(ptrs.shape):
            if mask[i]:
                at = int(ptrs[i]) - 1000
                out[i] = self.bytes[at : at + 4].view(np.float32)[0]
        return out

    def store(self, ptrs: Any, value: Any, mask: Any) -> None:
        for i in np.ndindex(ptrs.shape):
            if mask[i]:
                at = int(ptrs[i]) - 1000
                self.bytes[at : at + 4].view(np.float32)[0] = value[i]


@pytest.fixture
def memory() -> Memory:
    made = Memory(FlatMemory(), __file__)
    made.begin("kernel")
    return made


def lanes(base: int, *elements: int) -> Any:
    return np.array([base + 4 * e for e in elements], dtype=np.int64).astype(np.uint64)


def read(memory: Memory, ptrs: Any, mask: Any = None) -> Any:
    mask = np.ones(ptrs.shape, bool) if mask is None else mask
    return memory.load(ptrs, mask, np.zeros(ptrs.shape, np.float32), np.dtype(np.float32))


def write(memory: Memory, ptrs: Any, value: float = 1.0) -> None:
    memory.store(ptrs, np.full(ptrs.shape, value, np.float32), np.ones(ptrs.shape, bool))


def test_values_pass_through_and_traffic_is_counted(memory: Memory) -> None:
    x = memory.add("x", 1000, 32, 4, "float32[8]")
    write(memory, lanes(x, 0, 1, 2), 5.0)
    assert read(memory, lanes(x, 2, 3, 900), np.array([True, True, False])).tolist() == [5.0, 0.0, 0.0]
    assert not memory.findings
    loads = [t for t in memory.traffic.values() if t.loaded]
    assert [(t.loaded, t.masked_off) for t in loads] == [(8, 1)]


def test_a_neighbour_tensor_is_out_of_bounds(memory: Memory) -> None:
    x = memory.add("x", 1000, 16, 4, "float32[4]")
    y = memory.add("y", 1016, 16, 4, "float32[4]")
    write(memory, lanes(y, 0, 1, 2, 3), 9.0)
    assert read(memory, lanes(x, 3, 4, 5)).tolist() == [0.0, 0.0, 0.0]
    write(memory, lanes(y, -1))
    messages = [f.message for f in memory.findings.values()]
    assert len(messages) == 2
    assert "2 of 3 lanes" in messages[0]
    assert "byte 16 of `x`, 0 bytes past the end" in messages[0]
    assert "byte -4 of `y`, 4 bytes before the start" in messages[1]
    assert memory.real.bytes.view(np.float32)[3] == 0


def test_a_lane_that_straddles_the_end_is_out_of_bounds(memory: Memory) -> None:
    x = memory.add("x", 1000, 14, 4, "bytes[14]")
    read(memory, lanes(x, 3))
    assert [f.code for f in memory.findings.values()] == ["out-of-bounds"]


@pytest.mark.parametrize("far", [2**31 - 1, -(2**31)])
def test_no_int32_index_reaches_another_tensor(memory: Memory, far: int) -> None:
    x = memory.add("x", 1000, 16, 4, "float32[4]")
    memory.add("y", 2000, 16, 4, "float32[4]")
    read(memory, lanes(x, far))
    assert "`x`" in next(iter(memory.findings.values())).message


def test_views_of_one_storage_share_a_region(memory: Memory) -> None:
    assert memory.add("x", 1000, 16, 4, "a") == memory.add("x_view", 1000, 16, 4, "b")


def test_null_and_unknown_pointers(memory: Memory) -> None:
    read(memory, lanes(8, 0))
    assert "null pointer" in next(iter(memory.findings.values())).message
    with pytest.raises(Unsupported, match="pointer"):
        read(memory, lanes(0x7F0000000000, 0))


def test_races_between_programs(memory: Memory) -> None:
    x = memory.add("x", 1000, 64, 4, "float32[16]")

    def found(*steps: tuple[int, str, int]) -> set[str]:
        memory.begin("kernel")
        memory.findings.clear()
        memory.add("x", 1000, 64, 4, "float32[16]")
        for program, op, element in steps:
            memory.program = program
            (write if op == "store" else read)(memory, lanes(x, element))
        return {f.code for f in memory.findings.values()}

    assert found((0, "store", 1), (1, "store", 2), (1, "load", 2)) == set()
    assert found((0, "store", 1), (1, "store", 1)) == {"write-write-race"}
    assert found((0, "store", 1), (1, "load", 1)) == {"read-after-write-race"}
    assert found((0, "load", 1), (1, "load", 1), (0, "store", 1)) == {"write-after-read-race"}
    assert found((0, "load", 1), (0, "store", 1)) == set()
    assert all(f.severity == "advice" for f in memory.findings.values())


def test_a_huge_storage_is_checked_but_not_watched(memory: Memory) -> None:
    x = memory.add("x", 1000, RACE_BYTES + 4, 4, "float32[many]")
    for memory.program in (0, 1):
        write(memory, lanes(x, 0))
    assert not memory.findings
