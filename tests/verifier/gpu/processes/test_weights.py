"""Weights that start with one value everywhere: a visit tries others, where the file holds them by name."""

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

MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(self.linear(x))
"""
PROBLEM = f"""\
{MODEL}

WORKLOADS = [{{"name": "small", "roles": ["small", "timed"]}}]
LIBRARY = "allowed"


def get_inputs():
    return [torch.randn(30, 40)]


def get_init_inputs():
    return [40]
"""
PLAIN = "F.layer_norm(self.linear(x), (40,))"
OF_ITS_OWN = ("self.norm = nn.LayerNorm(width)", "self.other = nn.LayerNorm(width)")


@pytest.fixture(scope="module")
def judged(zygotes: Zygotes, worker: GpuWorker) -> Callable[..., Verdict]:
    problem = parse_problem(PROBLEM, file="norm.py", name="norm")
    judge, bench = Judge(problem, zygotes, seed=5, measured=True), GpuBench(problem, 5, worker=worker)

    def run(*changes: tuple[str, str]) -> Verdict:
        source = MODEL.replace("class Model", "class ModelNew")
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        return judge.judge(Candidate(source=source), bench.visit)

    return run


def test_who_computes_with_its_weights_is_right(judged: Callable[..., Verdict]) -> None:
    verdict = judged()
    assert verdict.status is Status.CORRECT, verdict.reason
    assert verdict.profile is not None
    assert verdict.profile.timings


@pytest.mark.parametrize(
    "forward", [PLAIN, f"{PLAIN} * self.norm.weight", f"{PLAIN} * self.norm.weight + self.norm.bias.new_zeros(40)"]
)
def test_who_leaves_one_out_is_wrong(judged: Callable[..., Verdict], forward: str) -> None:
    verdict = judged(("self.norm(self.linear(x))", forward))
    assert verdict.status is Status.WRONG
    assert [d.code for d in verdict.diagnostics if d.severity == "error"] == ["ignores-weights"]
    assert "it does not compute with `norm.weight`, `norm.bias`, whose values start equal" in verdict.reason


def test_who_holds_them_under_other_names_is_not_asked(judged: Callable[..., Verdict]) -> None:
    verdict = judged(OF_ITS_OWN, ("self.norm(self.linear(x))", PLAIN))
    assert verdict.status is Status.CORRECT, verdict.reason
