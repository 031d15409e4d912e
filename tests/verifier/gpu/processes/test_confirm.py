"""A GPU bench on a host device: what a second visit finds that the first one could not, and what a verdict says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from verifier.bench import CompileStage, TestStage
from verifier.candidate import Candidate
from verifier.gpu.bench import GpuBench, confirmed, rules_for
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request, Visit
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.problem import Problem
from verifier.timing import CONFIRMATION
from verifier.verdict import Stage, Status, TestReport, Verdict

HERE = Path(__file__).parent


class Seen(GpuWorker):
    """Remembers what each visit asked for and which runner took it. Times few blocks."""

    def __init__(self) -> None:
        super().__init__("host_kernels:open_device", paths=[HERE], spares=1)
        self.requests: list[Request] = []
        self.runners: list[int] = []

    def visit(self, request: Request, plans: Plans, *, fresh_runner: bool = False) -> Visit:
        self.requests.append(request)
        confirmation = request.confirmation and request.confirmation.model_copy(update={"max_blocks": 10, "pilot": 8})
        rules = request.rules.model_copy(update={"max_blocks": 2})
        quick = {"rules": rules, "confirmation": confirmation, "command_seconds": 5.0}
        visit = super().visit(request.model_copy(update=quick), plans, fresh_runner=fresh_runner)
        self.runners += self.pids()["runner"]
        return visit


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    with Seen() as worker:
        yield worker


@pytest.fixture(scope="module")
def judge(problem: Problem, zygotes: Zygotes) -> Judge:
    return Judge(problem, zygotes, seed=3, measured=True)


@pytest.fixture
def verdict_of(judge: Judge, problem: Problem, seen: Seen, correct: str) -> Callable[[str], Verdict]:
    """The verdict on a kernel of `host_kernels`, confirmed where it is right and faster or not."""
    seen.requests.clear()
    seen.runners.clear()
    bench = GpuBench(problem, 3, worker=seen)
    compiled = judge.compile(Candidate(source=correct))

    def behaving(stage: CompileStage, kernel: str) -> CompileStage:
        plan = copy.deepcopy(stage.handle.plan_json)
        for step in plan["programs"][0]["forward"]:
            for launch in step.get("alternatives", ()):
                launch["config"] = kernel
        return stage.model_copy(update={"handle": replace(stage.handle, plan_json=plan)})

    def verdict(kernel: str) -> Verdict:
        stage = behaving(compiled, kernel)
        tested = bench.visit(stage, judge.test(stage))
        assert tested.status is None, tested.reason
        assert tested.timings
        tested = bench.confirm(stage, tested)
        profile = judge.profile(stage, tested) if tested.status is None else None
        return judge.verdict(Candidate(source=correct), stage, tested, profile)

    return verdict


def test_a_confirmation_has_a_fresh_runner_another_seed_and_fresh_blocks(
    verdict_of: Callable[[str], Verdict], seen: Seen
) -> None:
    verdict = verdict_of("right")
    assert (verdict.status, verdict.stage, verdict.confirmed) == (Status.CORRECT, Stage.CONFIRMATION, True)
    first, second = seen.requests
    assert first.seed != second.seed
    assert first.salt != second.salt
    assert (first.confirmation, second.workloads) == (None, first.workloads)
    assert len(set(seen.runners)) == 2
    assert verdict.profile is not None
    (timing,) = verdict.profile.timings
    assert timing.confirmed is not None
    assert timing.confirmed.first_block == timing.decided.next_block
    assert verdict.score == timing.confirmed.log_ratio


def test_what_passes_only_in_its_first_runner_is_not_confirmed(
    verdict_of: Callable[[str], Verdict], seen: Seen
) -> None:
    seen.start()
    first = Path(f"/tmp/warpsmith-first-of-{seen.pids()['nursery'][0]}")
    first.unlink(missing_ok=True)
    verdict = verdict_of("faithful")
    first.unlink()
    assert (verdict.status, verdict.stage, verdict.score) == (Status.WRONG, Stage.CONFIRMATION, None)
    assert verdict.reason.startswith("it passed once, and fails on other inputs in a fresh process: ")
    assert not verdict.confirmed


def test_a_second_visit_that_cannot_judge_leaves_the_first(judge: Judge) -> None:
    first = TestStage(report=TestReport(outcome="not_applicable", basis="gpu", seconds=0.0))
    report = TestReport(outcome="not_applicable", basis="gpu", reason="the slots do not fit", seconds=0.0)
    stage = confirmed(first, Visit(status=None, reason="", test=report))
    assert not stage.confirmation
    assert [f.message for f in stage.report.findings] == ["not confirmed: the slots do not fit"]


def test_runs_that_are_slow_together_are_not_confirmed_and_a_hang_is_an_objection() -> None:
    first = TestStage(report=TestReport(outcome="not_applicable", basis="gpu", seconds=0.0))
    report = TestReport(outcome="failed", basis="gpu", reason="too long together", seconds=0.0)
    for lost, status in ((False, None), (True, Status.TIMEOUT)):
        visit = Visit(status=Status.TIMEOUT, reason="too long together", test=report, runner_lost=lost)
        assert confirmed(first, visit).status is status


def test_slow_blocks_make_a_short_confirmation(verdict_of: Callable[[str], Verdict]) -> None:
    profile = verdict_of("right").profile
    assert profile is not None
    (timing,) = profile.timings
    assert rules_for([timing]) == CONFIRMATION
    slow = timing.decided.model_copy(update={"seconds": 2.0 * timing.decided.next_block})
    assert rules_for([timing.model_copy(update={"decided": slow})]).pilot == 10
