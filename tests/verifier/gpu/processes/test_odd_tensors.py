"""Tensors of every kind as inputs and outputs, from the trace to times and back to a mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from verifier.candidate import Candidate
from verifier.gpu.bench import GpuBench
from verifier.gpu.supervisor import GpuWorker
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.loader import parse_problem
from verifier.verdict import Status, Verdict

Judged = Callable[[str], Verdict]

MODEL = """\
import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x, empty, rows, part, narrow, whole):
        y = x * 2 + empty.sum() + part.sum() + rows.sum(0)
        low = (x * narrow.float()).to(torch.float8_e4m3fn)
        return y, y[:0], y[3:9], y.view(30, 10).t(), {"low": low, "is": x > 0, "n": whole + 1}, torch.fft.fft(x), whole
"""
PROBLEM = f"""\
{MODEL}

WORKLOADS = [{{"name": "small", "roles": ["small", "timed"]}}]
LIBRARY = "allowed"


def get_inputs():
    x = torch.randn(300)
    rows, part = torch.rand(1, 300).expand(4, 300), torch.randn(8, 9)[:, 2:7]
    narrow, whole = torch.randn(300).to(torch.float8_e5m2), torch.randint(-9, 9, (301,)).char()
    return [x, torch.randn(0, 4), rows, part, narrow, whole]


def get_init_inputs():
    return []
"""
MISTAKES = {"low": ("narrow.float()", "narrow.float() * 1.5"), "expanded": ("rows.sum(0)", "rows.sum(0) * 0.9"),
            "integer": ("whole + 1", "whole + (whole > 7)")}  # fmt: skip


@pytest.fixture(scope="module")
def judged(zygotes: Zygotes, worker: GpuWorker) -> Judged:
    problem = parse_problem(PROBLEM, file="odd.py", name="odd")
    judge, bench = Judge(problem, zygotes, seed=5, measured=True), GpuBench(problem, 5, worker=worker)
    return lambda source: judge.judge(Candidate(source=source.replace("class Model", "class ModelNew")), bench.visit)


def test_a_right_answer_is_right_and_timed(judged: Judged) -> None:
    verdict = judged(MODEL)
    assert verdict.status is Status.CORRECT, verdict.reason
    assert verdict.test is not None
    assert (verdict.test.basis, len(verdict.test.checks)) == ("gpu", 6 * 9)
    assert verdict.profile is not None
    assert [t.workload for t in verdict.profile.timings] == ["small"]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_one_of_them_is_wrong(judged: Judged, name: str) -> None:
    assert judged(MODEL.replace(*MISTAKES[name])).status is Status.WRONG
