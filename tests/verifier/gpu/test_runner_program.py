"""What lies round a timed call in the runner: state and inputs as they should be, nothing left in scratch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verifier.gpu.host_device import HostLauncher, tensor_at
from verifier.gpu.replay import Replayer
from verifier.gpu.runner import _Program
from verifier.plan.schema import Alternative

HEAD = "import torch, triton, triton.language as tl\nfrom torch import nn\n"
CHANGES = (
    HEAD
    + """
class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.ones(6))
    def forward(self, x):
        x.add_(1)
        self.seen.add_(1)
        return x * self.seen
"""
)
SCRATCH = (
    HEAD
    + """
@triton.jit
def copy(x, s, o, n, B: tl.constexpr):
    r = tl.arange(0, B)
    v = tl.load(x + r, r < n)
    tl.store(s + r, v, r < n)
    tl.store(o + r, v, r < n)
class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.kept = torch.empty(48, device="cuda")
    def forward(self, x):
        o = torch.empty_like(x)
        copy[(1,)](x, self.kept, o, x.numel(), B=64)
        return o
"""
)

FLAGS = (
    HEAD
    + """
@triton.jit
def flag(x, o, n, B: tl.constexpr):
    r = tl.arange(0, B)
    tl.store(o + r, tl.load(x + r, r < n) > 0, r < n)
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty(48, dtype=torch.bool, device="cuda")
        flag[(1,)](x, o, x.numel(), B=64)
        return o.view(8, 6).t()
"""
)


class Counted(Replayer):
    """Counts how often state is put back."""

    restored = 0

    def restore(self) -> None:
        self.restored += 1
        super().restore()


def program(traced: Any, source: str, x: Tensor, **kernels: Any) -> tuple[_Program, Counted]:
    plan, blobs = traced(source, [x])
    replayer = Counted(plan, blobs, "w", device=torch.device("cpu"), launcher=HostLauncher(kernels))
    replayer.load()
    replayer.bind([x], {"seen": torch.ones(6)})
    replayer.setup()
    made = _Program(replayer, inputs=[x])
    made.run()
    return made, replayer


def test_a_bool_that_nothing_wrote_reaches_the_judge_as_it_is(traced: Any) -> None:
    """A kernel that writes the false ones alone must not find the others true."""

    def lazy(launch: Alternative, addresses: Sequence[int]) -> None:
        given, out = (tensor_at(addresses[i], 48, dtype) for i, dtype in enumerate((torch.float32, torch.uint8)))
        out.masked_fill_(given <= 0, 0)

    x = torch.arange(48.0) - 24
    plan, blobs = traced(FLAGS, [x])
    replayer = Replayer(plan, blobs, "w", device=torch.device("cpu"), launcher=HostLauncher({"flag": lazy}))
    replayer.load()
    replayer.poison = True
    replayer.bind([x], {})
    replayer.setup()
    slot = torch.zeros(6, 8, dtype=torch.bool)
    made = _Program(replayer, inputs=[x], slots=[slot])
    made.run()
    made.give()
    assert slot.view(torch.uint8).unique().tolist() == [0, 0xAA]


def test_restoring_is_not_timed(traced: Any) -> None:
    made, replayer = program(traced, CHANGES, torch.zeros(8, 6))
    for _ in range(2):
        made.prepare([], 0)
        before = replayer.restored
        made.call()
        assert replayer.restored == before
        assert torch.equal(made.last[0], torch.full((8, 6), 2.0))


def test_inputs_given_late_are_what_is_restored(traced: Any) -> None:
    made, _ = program(traced, CHANGES, torch.zeros(8, 6))
    for fresh in ([], [torch.full((8, 6), 4.0)], [], []):
        made.prepare(fresh, 0)
        made.call()
    assert torch.equal(made.last[0], torch.full((8, 6), 10.0))


def test_scratch_holds_nothing_of_the_call_before(traced: Any) -> None:
    found: list[Tensor] = []

    def copy(launch: Alternative, addresses: Sequence[int]) -> None:
        x, kept, out = (torch.frombuffer((ctypes.c_float * 48).from_address(a), dtype=torch.float32)
                        for a in addresses[:3])  # fmt: skip
        found.append(kept.clone())
        kept.copy_(x)
        out.copy_(x)

    made, replayer = program(traced, SCRATCH, torch.ones(8, 6), copy=copy)
    assert not replayer.poison
    for _ in range(2):
        made.prepare([], 0)
        made.call()
    assert all(kept.isnan().all() for kept in found[1:])
