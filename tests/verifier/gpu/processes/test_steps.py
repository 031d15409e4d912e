"""Step times through all processes on the host's memory, and how they reach the profile of a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from verifier.candidate import Candidate
from verifier.gpu import judge_process
from verifier.gpu.bench import joined
from verifier.gpu.host_device import HostDevice
from verifier.gpu.link import RunnerFailed
from verifier.gpu.parts import Parts
from verifier.gpu.references import References
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request, Visit
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.problem import Problem
from verifier.timing import Rules
from verifier.verdict import Ceilings, Status, StepTimes

QUICK = Rules(max_blocks=2)
CEILINGS = Ceilings(device="d", uuid="u", driver="1", copy_rate=4e12, flops={"fp32": 5e13, "tf32": 4e14, "bf16": 8e14})


@pytest.fixture
def visit(worker: GpuWorker, plans: Callable[..., Plans], request_of: Callable[..., Request]) -> Callable[..., Visit]:
    def make(kernel: str | None, **options: Any) -> Visit:
        asked = request_of(timed=("small",), draws=("task",), rules=QUICK, **options)
        return worker.visit(asked, plans(kernel, based=True))

    return make


@pytest.mark.parametrize("kernel", ["right", None])
def test_every_step_has_a_time(visit: Callable[..., Visit], traced: dict[str, Any], kernel: str | None) -> None:
    (found,) = visit(kernel).steps
    forward = traced["ModelNew" if kernel else "Model"][0]["programs"][0]["forward"]
    assert (found.workload, len(found.seconds)) == ("small", len(forward))
    assert all(0 <= s < 1 and math.isfinite(s) for s in found.seconds)
    assert 0 < found.launch_seconds < 1


def test_only_what_was_timed_has_steps(visit: Callable[..., Visit]) -> None:
    assert visit("right", steps=False).steps == ()
    wrong = visit("wrong")
    assert (wrong.status, wrong.steps) == (Status.WRONG, ())


class Line:
    """A link, and pairs whose steps end as told."""

    def __init__(self, ends: RunnerFailed | StepTimes | None) -> None:
        self.deadline, self.asked, self._ends, self.part = 10.0, 0, ends, Parts()

    def steps(self) -> StepTimes | None:
        self.asked += 1
        if isinstance(self._ends, RunnerFailed):
            raise self._ends
        return self._ends


def visiting(line: Any, request: Request) -> judge_process._Visit:
    return judge_process._Visit(HostDevice(), References(torch.device("cpu")), judge_process.Plans(), line, request, {})


TIMES = StepTimes(workload="small", seconds=(1e-6,), launch_seconds=1e-6)
LOST = RunnerFailed("hang", "it hangs", lost=True)


@pytest.mark.parametrize(
    ("ends", "call_seconds", "asked", "kept"),
    [
        (TIMES, 0.1, 1, [TIMES]),
        (TIMES, 1.0, 0, []),  # its steps could run past the deadline, and an honest candidate would be called hung
        (None, 0.1, 1, []),
        (RunnerFailed("not-replayed", "too many steps", lost=False), 0.1, 1, []),
    ],
)
def test_steps_that_cannot_be_timed_change_nothing(
    request_of: Callable[..., Request], ends: Any, call_seconds: float, asked: int, kept: list[StepTimes]
) -> None:
    line: Any = Line(ends)
    work = judge_process._Visit(
        HostDevice(), References(torch.device("cpu")), judge_process.Plans(), line, request_of(), {}
    )
    line.deadline = 10.0
    work._time_steps(line, call_seconds)
    assert (line.asked, work._steps, work._found.status) == (asked, kept, None)


def test_a_runner_lost_in_its_steps_is_lost(request_of: Callable[..., Request]) -> None:
    line: Any = Line(LOST)
    work = judge_process._Visit(
        HostDevice(), References(torch.device("cpu")), judge_process.Plans(), line, request_of(), {}
    )
    with pytest.raises(RunnerFailed):
        work._time_steps(line, 0.1)


def test_steps_reach_the_verdict(visit: Callable[..., Visit], zygotes: Zygotes, problem: Problem, correct: str) -> None:
    judge = Judge(problem, zygotes, target="h200", seed=3, measured=True)
    stage = judge.compile(Candidate(source=correct))
    test = judge.test(stage)
    seen = visit("right").model_copy(update={"ceilings": CEILINGS})
    report = judge.profile(stage, joined(test, seen))
    assert report.measured is not None
    (workload,) = report.measured.workloads
    assert "kernel" in [s.name for s in workload.steps if s.custom]
    assert report.measured.ceilings == CEILINGS
    without = judge.profile(stage, joined(test, seen.model_copy(update={"ceilings": None})))
    assert without.measured is None
    assert without.diagnosis == stage.handle.profiled.diagnosis
