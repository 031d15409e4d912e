"""Calls that the host gives too late, on a GPU."""

from __future__ import annotations

import time

import pytest
import torch

from verifier.gpu.cuda_device import open_device
from verifier.gpu.device import Call

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_late_calls_are_counted_and_queue_up_from_then_on() -> None:
    device, x = open_device(), torch.zeros(1 << 20, device="cuda")

    def starved(calls: int, wait: float) -> int:
        late = Call(before=lambda: time.sleep(wait), run=lambda: x.add_(1), after=lambda: None)
        return device.time([late] * calls, flush=False).starved

    starved(2, 0.0)  # loads the kernels
    assert starved(8, 2e-3) >= 7
    assert starved(8, 2e-3) >= 6
    assert starved(8, 2e-3) >= 5
    assert starved(2, 5e-4) == 0
