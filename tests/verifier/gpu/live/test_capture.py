"""A graph of a candidate's forward is used only where it holds all of its work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verifier.gpu.contestant import LiveProgram
from verifier.gpu.device import Capturable
from verifier.gpu.host_device import HostDevice

SPEC = {"kind": "list", "items": [{"kind": "tensor", "shape": [100], "dtype": "float32", "stride": [1]}]}


class Graph:
    """Stands for a CUDA graph: `replay` calls what was captured, into the same outputs."""

    def __init__(self, outputs: list[Tensor], replay: Callable[[], None]) -> None:
        self.outputs, self.replay = outputs, replay

    def close(self) -> None:
        self.outputs = []


class Capturing(HostDevice):
    """A device whose graphs hold the steps of a forward from `skipped` on: those before ran while it was made."""

    def __init__(self, steps: list[Callable[[], None]], skipped: int) -> None:
        super().__init__()
        self._steps, self._skipped = steps, skipped

    def capture(self, program: Capturable) -> Any:
        outputs = program.forward()

        def replay() -> None:
            for step in self._steps[self._skipped :]:
                step()

        return Graph(outputs, replay)


@pytest.mark.parametrize(("skipped", "whole"), [(0, True), (1, False), (2, False)])
def test_a_graph_that_lacks_a_kernel_is_not_used(skipped: int, whole: bool) -> None:
    x, between, out = torch.randn(100), torch.zeros(100), torch.zeros(100)
    steps: list[Callable[[], None]] = [
        lambda: void(torch.mul(x, 2.0, out=between)), lambda: void(torch.add(between, 1.0, out=out))
    ]  # fmt: skip

    def forward(_: Tensor) -> Tensor:
        for step in steps:
            step()
        return out

    program = LiveProgram(lambda: forward, torch.device("cpu"), SPEC)
    program.bind([x], [torch.empty(100)])
    program.build({})
    program.run()
    assert program.capture(Capturing(steps, skipped)) is whole
    program.call()
    program.give()
    assert torch.equal(program.slots[0], x * 2.0 + 1.0)


def void(_: object) -> None:
    return None


def test_a_graph_that_changes_a_buffer_starts_each_call_from_the_same() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.data.add_(1)  # like a kernel: torch does not see that it changes
            return torch.mul(x, self.calls, out=out)

    out, x = torch.zeros(100), torch.randn(100)
    program = LiveProgram(Counts, torch.device("cpu"), SPEC)
    program.bind([x], [torch.empty(100)])
    program.build({})
    program.run()
    assert program.capture(Capturing([lambda: void(program._model(x))], 0))
    for _ in range(2):
        program.restore()
        program.call()
        program.give()
        assert torch.equal(program.slots[0], x)
