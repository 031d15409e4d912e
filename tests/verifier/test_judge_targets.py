"""The judge for other targets: a file whose grid depends on the device gets one answer from trace and interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.candidate import Candidate
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.loader import load_problem
from verifier.target import get_target
from verifier.verdict import Status

PERSISTENT = """import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def kernel(x, y, out, n, programs, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), programs):
        at = block * BLOCK + tl.arange(0, BLOCK)
        value = tl.where(0 <= at < n, tl.load(x + at, at < n) * 2.0 + tl.load(y + at, at < n), 0.0)
        tl.store(out + at, value, at < n)


class ModelNew(nn.Module):
    def forward(self, x, y):
        out = torch.empty_like(x)
        sms = torch.cuda.get_device_properties(x.device).multi_processor_count
        kernel[(sms,)](x, y, out, x.numel(), sms, BLOCK=16)
        return out
"""


@pytest.mark.parametrize("device", ["a100", "h100-pcie", "b200"])
def test_a_grid_of_one_program_per_multiprocessor(device: str, zygotes: Zygotes, problem_file: Path) -> None:
    source = PERSISTENT.replace("0 <= at < n", "at < n")
    verdict = Judge(load_problem(problem_file), zygotes, target=device, seed=1).judge(Candidate(source=source))
    assert verdict.status is Status.CORRECT, verdict.reason
    assert verdict.compile is not None
    assert verdict.compile.launches[0].grid == (get_target(device).sms, 1, 1)
    assert verdict.score_kind == "estimate"


def test_a_chained_comparison_is_said_to_depend_on_the_version(zygotes: Zygotes, problem_file: Path) -> None:
    verdict = Judge(load_problem(problem_file), zygotes, seed=1).judge(Candidate(source=PERSISTENT))
    assert verdict.compile is not None
    (told,) = [d for d in verdict.compile.findings if d.code == "triton-version"]
    assert (told.severity, told.line) == ("warning", 11)
    assert verdict.status in (Status.CORRECT, Status.COMPILE_ERROR)  # as the installed version decides
