"""On a device: five planted causes end to end, the ceilings, the profiler and the sanitizer on one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from verifier.bench import TestStage
from verifier.candidate import Candidate
from verifier.gpu.bench import GpuBench
from verifier.gpu.ceilings import ceilings
from verifier.gpu.counters import count, diagnose
from verifier.gpu.replay_folder import Replay, find_tool, write_folder
from verifier.gpu.sanitizer import sanitize
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.loader import parse_problem
from verifier.problem import Problem
from verifier.verdict import Status, TestReport

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
PLANTED = Path(__file__).parent / "planted"
CAUSES = {
    "at_roof": "memory-bound",
    "rereading": "re-reading",
    "registers": "low-occupancy-registers",
    "launches": "launch-bound",
    "tensor_cores": "no-tensor-core",
}


def problem_of(name: str) -> Problem:
    return parse_problem((PLANTED / f"{name}_problem.py").read_text(), file=f"{name}.py", name=name)


@pytest.mark.parametrize("name", CAUSES)
def test_the_planted_cause_is_measured(name: str, zygotes: Zygotes) -> None:
    problem = problem_of(name)
    judge = Judge(problem, zygotes, target="h200", seed=5, measured=True)
    bench = GpuBench(problem, 5)
    try:
        verdict = judge.judge(Candidate(source=(PLANTED / f"{name}.py").read_text()), bench.visit)
    finally:
        bench.close()
    assert verdict.ok, verdict.reason
    assert verdict.profile is not None
    measured = verdict.profile.measured
    assert measured is not None
    said = [f"{d.code}: {d.message}" for d in verdict.profile.diagnosis]
    assert verdict.profile.diagnosis[0].code == CAUSES[name], said
    (workload,) = measured.workloads
    (timing,) = verdict.profile.timings
    assert timing.decided.candidate_seconds is not None
    if name != "launches":  # there, a graph starts kernels faster than events can tell
        assert workload.seconds == pytest.approx(timing.decided.candidate_seconds, rel=0.2)


UNMASKED = "tl.load(x + at, mask=inside)"


@pytest.fixture(scope="module")
def bench() -> Iterator[GpuBench]:
    """For a scaled sum of 8,388,609 elements: one beyond a whole block, and more than L2 caches hold."""
    text = (PLANTED / "at_roof_problem.py").read_text().replace("67108864", "8388609")
    with closing(GpuBench(parse_problem(text, file="p.py", name="p"), 5)) as made:
        yield made


def test_a_new_best_is_confirmed_and_examined(bench: GpuBench, zygotes: Zygotes) -> None:
    judge = Judge(bench.problem, zygotes, seed=5, measured=True)
    source = Candidate(source=(PLANTED / "at_roof.py").read_text())
    verdict = judge.judge(source, bench.visit, bench.confirm, bench.examine)
    assert verdict.confirmed, verdict.reason
    assert verdict.profile is not None
    (timing,) = verdict.profile.timings
    assert timing.confirmed is not None
    assert timing.confirmed.upper is not None
    assert timing.confirmed.lower is not None
    assert timing.confirmed.upper - timing.confirmed.lower < 0.02
    told = {d.code: d.message for d in verdict.profile.diagnosis}
    if find_tool("ncu") and "not-examined" not in told:
        assert any("Counted: " in message for message in told.values()), told


def test_the_sanitizer_sees_what_no_value_shows(bench: GpuBench, zygotes: Zygotes) -> None:
    """It reads beyond its input, and what it reads there is stored nowhere: a visit has no objection."""
    if find_tool("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not installed")
    judge = Judge(bench.problem, zygotes, seed=5, measured=True)
    source = (PLANTED / "at_roof.py").read_text()
    assert UNMASKED in source
    stage = judge.compile(Candidate(source=source.replace(UNMASKED, "tl.load(x + at)")))
    assert stage.status is None, stage.reason
    untested = TestReport(outcome="not_applicable", basis="interpreter", seconds=0.0)
    visited = bench.visit(stage, TestStage(report=untested, status=Status.UNTESTED))
    assert visited.status is None, visited.reason
    found = bench.examine(stage, visited)
    assert found.status is Status.OUT_OF_BOUNDS, [d.message for d in found.examined]
    assert found.examined[0].line in (13, 14)


def test_ceilings_are_measured_once(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    first = ceilings(device, tmp_path)
    assert ceilings(device, tmp_path) == first
    assert first.copy_rate > 1e11
    assert first.flops["bf16"] > first.flops["tf32"] > first.flops["fp32"] > 1e12


@pytest.fixture
def folder(planted: Any, tmp_path: Path) -> Path:
    _, plan_json, blobs = planted
    return write_folder(tmp_path, plan_json, blobs, Replay(problem=problem_of("at_roof"), workload="small", seed=3))


def test_the_profiler_counts_one_kernel(planted: Any, folder: Path) -> None:
    if find_tool("ncu") is None:
        pytest.skip("ncu is not installed")
    found = count(folder, planted[0])
    if "may not read counters" in found.excuse:
        pytest.skip(found.excuse)
    assert found.excuse == ""
    (launch,) = found.launches
    assert launch.kernel == "kernel"
    assert launch.values["registers"] >= 16
    assert launch.values["nanoseconds"] > 500
    assert len(launch.values) >= 12, sorted(launch.values)
    assert diagnose(found, {}, {})[0].message.startswith("kernel `kernel`")


def test_the_sanitizer_finds_nothing_in_an_honest_kernel(folder: Path) -> None:
    if find_tool("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not installed")
    assert sanitize(folder, seconds=120) == ((), ())
