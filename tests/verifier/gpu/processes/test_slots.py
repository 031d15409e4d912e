"""Where tensors lie in shared memory, and that every byte around them is watched."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from verifier.gpu.check import Slots, write
from verifier.gpu.host_device import HostDevice
from verifier.gpu.memory import GUARD
from verifier.gpu.slots import ALIGN, Arena, Flags, Mapped, Place, Want, view
from verifier.near import same_bytes
from verifier.plan.schema import Plan


@pytest.fixture
def arena() -> Iterator[Arena]:
    wants = [Want(4 * 7, "float32", (7,), (1,)), Want(1, "bool", (), ()), Want(64, "float16", (3, 4), (8, 1), 4)]
    made = Arena(HostDevice(), 5, wants)
    yield made
    made.close()


def test_a_tensor_begins_where_its_storage_does(arena: Arena) -> None:
    for tensor, place in zip(arena.views, arena.places, strict=True):
        assert place.start % ALIGN == 0
        assert place.block == 5
        assert tensor.untyped_storage().data_ptr() == arena.block.bytes(place.start, 1).data_ptr()
        assert (tuple(tensor.shape), tensor.stride(), tensor.storage_offset()) == (
            place.shape, place.stride, place.offset,
        )  # fmt: skip


def test_two_mappings_are_one_memory(arena: Arena) -> None:
    other = HostDevice().map(os.dup(arena.fd), arena.block.nbytes)
    arena.views[0].fill_(2.5)
    theirs = view(other, arena.places[0])
    assert torch.equal(theirs, torch.full((7,), 2.5))
    theirs[3] = 9.0
    assert arena.views[0][3] == 9.0


def test_of_descriptors_that_cannot_all_be_mapped_none_stays_open(arena: Arena) -> None:
    before, blocks = len(os.listdir("/proc/self/fd")), Mapped(HostDevice())
    with pytest.raises((ValueError, OSError)):
        blocks.map([os.dup(arena.fd) for _ in range(3)], [[0, arena.block.nbytes], [1, 1 << 50], [2, 4096]])
    blocks.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("where", ["first", "between", "last"])
def test_every_byte_between_tensors_is_a_guard(arena: Arena, where: str) -> None:
    arena.arm(77)
    assert arena.broken() == []
    for i, tensor in enumerate(arena.views):
        arena.storage(i).fill_(0)
        assert tensor is not None
    assert arena.broken() == []
    first, second = arena.places[0], arena.places[1]
    at = {"first": first.start - 1, "between": first.start + first.bytes, "last": arena.places[2].start + 64}[where]
    arena.block.bytes(at, 1).fill_(78)
    assert arena.broken() == [{"first": 0, "between": 1, "last": 3}[where]]
    assert second.start - first.start - first.bytes >= GUARD


@pytest.mark.parametrize(
    "place",
    [
        Place(block=0, start=0, bytes=4096, dtype="float32", shape=(1025,), stride=(1,)),
        Place(block=0, start=1 << 39, bytes=16, dtype="float32", shape=(4,), stride=(1,)),
        Place(block=0, start=0, bytes=16, dtype="float32", shape=(4,), stride=(1,), offset=1),
    ],
)
def test_a_view_outside_of_its_block_is_refused(place: Place) -> None:
    block, fd = HostDevice().create(4096)
    os.close(fd)
    with pytest.raises(ValueError, match="outside"):
        view(block, place)
    block.close()


def test_an_expanded_input_is_written_once() -> None:
    slot = torch.zeros(3).as_strided((4, 3), (0, 1))
    write(slot, torch.arange(3.0).expand(4, 3))
    assert torch.equal(slot, torch.arange(3.0).expand(4, 3))


def test_bytes_are_compared_not_values() -> None:
    nan, zero = torch.tensor([torch.nan]), torch.tensor([0.0])
    assert same_bytes(nan, nan.clone())
    assert not same_bytes(zero, -zero)
    assert same_bytes(torch.empty(0), torch.empty(0))
    assert same_bytes(torch.tensor(3.0), torch.tensor(3.0))


def test_flags_say_go_and_done() -> None:
    fd = os.memfd_create("flags")
    os.ftruncate(fd, 4096)
    ours, theirs = Flags(fd), Flags(fd)
    os.close(fd)
    thread = threading.Timer(0.05, lambda: theirs.set(Flags.DONE, 7))
    thread.start()
    assert ours.wait(Flags.DONE, 7, 60.0)
    thread.join()
    assert not ours.wait(Flags.GO, 7, 0.05)
    start = time.perf_counter()
    assert not ours.wait(Flags.GO, 7, 120.0, unless=lambda: True)
    assert time.perf_counter() - start < 60
    ours.close()
    theirs.close()


def test_two_programs_exchange_the_memory_of_equal_inputs(traced: dict[str, Any]) -> None:
    program = Plan.model_validate_json(json.dumps(traced["Model"][0])).programs[0]
    one, two = (Slots(HostDevice(), program, {}, number) for number in (0, 8))
    given = [torch.full((300,), float(n)) for n in (1, 2)]
    one.write(given, {})
    one.exchange_inputs(two)
    assert [float(v[0]) for v in two.inputs.views] == [1.0, 2.0]
    assert [p.block for p in two.inputs.places + two.outputs.places] == [0, 0, 9]
    assert one.arenas[0] is one.inputs
    two.write(None, {})
    assert [float(v[0]) for v in two.inputs.views] == [1.0, 2.0]
    for slots in (one, two):
        slots.close()
