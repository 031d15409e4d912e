"""The live path on a real GPU: what CUDA, Triton and builds need in the sandbox, and tricks of a device's clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from verifier.candidate import Candidate
from verifier.gpu.bench import GpuBench, live_request
from verifier.gpu.found import visible_gpus
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Visit
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.kept import LiveFile
from verifier.loader import parse_problem
from verifier.problem import Problem
from verifier.verdict import Status

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not visible_gpus(), reason="needs an NVIDIA GPU")]
N = 1 << 24
BRANCH = ("        return run(x, y)", "        return run(x, y) if x.isfinite().all().item() else x")
INLINE = '''\
import torch
from torch import nn
from torch.utils.cpp_extension import load_inline

SOURCE = """
#include <torch/extension.h>
__global__ void scale(const float* x, const float* y, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] * 2.0f + y[i];
}
torch::Tensor run(torch::Tensor x, torch::Tensor y) {
    auto out = torch::empty_like(x);
    int n = x.numel();
    scale<<<(n + 255) / 256, 256>>>(x.data_ptr<float>(), y.data_ptr<float>(), out.data_ptr<float>(), n);
    return out;
}
"""
ext = load_inline("scale", "torch::Tensor run(torch::Tensor x, torch::Tensor y);", SOURCE, functions=["run"])


class ModelNew(nn.Module):
    def forward(self, x, y):
        return ext.run(x, y)
'''
TRICKS = """
import gc, struct, sys

def timed():
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_calls":
        frame = frame.f_back
    return frame is not None

def page():
    return next(o for o in gc.get_objects() if type(o).__name__ == "Flags")

def work(x, y):
    if not timed():
        x[0].item()  # so that no graph is made of it, and Python runs when it is timed
    torch.cuda._sleep(2_000_000)  # a millisecond
    return run(x, y)
"""
EARLY = (
    "        out = work(x, y)\n        if timed():\n"
    "            page().set(64, struct.unpack_from('<Q', page()._page, 0)[0])\n"
)
CHEATS = {
    "done before the kernel ends": EARLY + "        return out",
    "a side stream that nobody waits for": (
        "        if not timed():\n            return work(x, y)\n"
        "        with torch.cuda.stream(torch.cuda.Stream()):\n            out = work(x, y)\n"
        "        torch.cuda.synchronize = lambda *a: None\n        return out"),
    "answers by address": (
        "        key = x.data_ptr() if timed() else None\n        if key is None or key not in HELD:\n"
        "            HELD[key] = work(x, y)\n        return HELD[key]"),
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(problem_text: str) -> Problem:
    """x * 2 + y on 16 Mi elements; library operators may help."""
    small = '"roles": ["small", "timed"], "constants": {"N": 300}}'
    more = {"name": "wide", "roles": ["timed"], "constants": {"N": N}}
    big = f'"roles": ["small"], "constants": {{"N": 300}}}}, {json.dumps(more)}'
    text = problem_text.replace('"forbidden"', '"assist"').replace(small, big)
    return parse_problem(text, file="wide.py", name="wide")


@pytest.fixture(scope="module")
def worker() -> Iterator[GpuWorker]:
    with GpuWorker() as started:
        yield started


@pytest.fixture(scope="module")
def judge(wide: Problem, zygotes: Zygotes) -> Judge:
    return Judge(wide, zygotes, target="h200", seed=11, measured=True)


def test_a_file_that_reads_a_value_is_judged_live(judge: Judge, wide: Problem, worker: GpuWorker, correct: str) -> None:
    bench = GpuBench(wide, 11, worker=worker)
    verdict = judge.judge(Candidate(source=correct.replace(*BRANCH)), bench.visit)
    assert verdict.status is Status.CORRECT, verdict.reason
    assert (verdict.path, verdict.score_kind) == ("live", "measured")
    assert verdict.profile is not None
    assert [t.path for t in verdict.profile.timings] == ["live"]
    assert {f.code for f in verdict.compile.findings} >= {"policy-unchecked"} if verdict.compile else False
    assert any("driver" in gap for gap in verdict.isolation)


@pytest.fixture(scope="module")
def live(judge: Judge, wide: Problem, worker: GpuWorker, correct: str) -> Callable[..., Visit]:
    judge.prepare()
    stage = judge.compile(Candidate(source=correct.replace(*BRANCH)))
    kept: LiveFile = stage.handle
    assert kept.base is not None

    def judged(source: str, **changes: Any) -> Visit:
        request = live_request(wide, kept, 11, 240.0).model_copy(update=changes)
        return worker.visit(request, Plans(base=kept.base.plan, base_blobs=kept.base.blobs, source=source))

    return judged


def test_an_extension_is_built_on_the_cpu_and_judged(judge: Judge, wide: Problem, worker: GpuWorker) -> None:
    verdict = judge.judge(Candidate(source=INLINE), GpuBench(wide, 11, worker=worker).visit)
    assert (verdict.status, verdict.path) == (Status.CORRECT, "live"), verdict.reason
    assert verdict.seconds["build"] > 5 > verdict.seconds["gpu check"], verdict.seconds
    assert verdict.profile is not None
    assert [t.path for t in verdict.profile.timings] == ["live"], verdict.test


def test_an_extension_that_does_not_build_says_why(judge: Judge) -> None:
    stage = judge.compile(Candidate(source=INLINE.replace("x.numel()", "x.count()")))
    assert stage.status is Status.COMPILE_ERROR, stage.reason
    assert 'has no member "count"' in stage.reason


@pytest.mark.parametrize("name", CHEATS)
def test_a_trick_against_the_clock_is_wrong(live: Callable[..., Visit], correct: str, name: str) -> None:
    source = correct.replace(BRANCH[0], CHEATS[name]).replace(
        "class ModelNew", f"{TRICKS}\nHELD = {{}}\n\n\nclass ModelNew"
    )
    visit = live(source, draws=("task",), repeats=2, probe=False)
    assert (visit.status, visit.timings) == (Status.WRONG, ()), visit.reason
    assert "timed call" in visit.reason


def test_a_fault_costs_one_verdict(live: Callable[..., Visit], correct: str) -> None:
    visit = live(correct.replace("tl.store(out + at, value", "tl.store(out + at + (1 << 40), value"))
    assert visit.status is Status.OUT_OF_BOUNDS, visit.reason
    assert live(correct, timed=()).status is None


def test_an_honest_file_gives_what_its_plan_gives(judge: Judge, wide: Problem, worker: GpuWorker, correct: str) -> None:
    bench = GpuBench(wide, 11, worker=worker)
    stage = judge.compile(Candidate(source=correct))
    found = bench.run_file(stage)
    assert found.outputs == "bitwise", found.reason
    assert found.agrees, found
    assert found.timings[0].graphs


def test_a_file_that_is_another_one_live_does_not_agree(
    judge: Judge, wide: Problem, worker: GpuWorker, correct: str
) -> None:
    bench = GpuBench(wide, 11, worker=worker)
    other = correct.replace(
        BRANCH[0], "        return run(x, y) if type(x).__name__ == 'FakeTensor' else x * 2.0 + y + 1"
    )
    stage = judge.compile(Candidate(source=correct))
    stage = stage.model_copy(update={"handle": _with_source(stage.handle, other)})
    found = bench.run_file(stage)
    assert (found.outputs, found.agrees) == ("different", False)


def _with_source(kept: Any, source: str) -> Any:
    from dataclasses import replace

    return replace(kept, source=source)
