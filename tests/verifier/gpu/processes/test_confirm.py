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
from verifier.loader import parse_problem
from verifier.problem import Problem
from verifier.timing import CONFIRMATION
from verifier.verdict import Diagnostic, Stage, Status, TestReport, Verdict

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
        quick = {"rules": rules, "confirmation": confirmation, "command_seconds": 60.0}
        visit = super().visit(request.model_copy(update=quick), plans, fresh_runner=fresh_runner)
        self.runners += self.pids()["runner"]
        return visit


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    with Seen() as worker:
        yield worker


@pytest.fixture(scope="module")
def problem(problem_text: str) -> Problem:
    """The scaled sum with a workload that is held out."""
    small = '{"name": "small", "roles": ["small", "timed"], "constants": {"N": 300}}'
    more = '{"name": "large", "roles": ["held_out"], "constants": {"N": 700}}'
    assert small in problem_text
    return parse_problem(problem_text.replace(small, f"{small}, {more}"), file="sum.py", name="sum")


@pytest.fixture(scope="module")
def judge(problem: Problem, zygotes: Zygotes) -> Judge:
    return Judge(problem, zygotes, seed=3, measured=True)


@pytest.fixture(scope="module")
def stage_of(judge: Judge, correct: str) -> Callable[[str], CompileStage]:
    """A stage whose plan launches a kernel of `host_kernels`."""
    compiled = judge.compile(Candidate(source=correct))

    def behaving(kernel: str) -> CompileStage:
        plan = copy.deepcopy(compiled.handle.plan_json)
        for step in (step for program in plan["programs"] for step in program["forward"]):
            for launch in step.get("alternatives", ()):
                launch["config"] = kernel
        return compiled.model_copy(update={"handle": replace(compiled.handle, plan_json=plan)})

    return behaving


@pytest.fixture
def verdict_of(
    judge: Judge, problem: Problem, seen: Seen, correct: str, stage_of: Callable[[str], CompileStage]
) -> Callable[[str], Verdict]:
    """The verdict on a kernel of `host_kernels`, confirmed where it is right and faster or not."""
    seen.requests.clear()
    seen.runners.clear()
    bench = GpuBench(problem, 3, worker=seen)

    def verdict(kernel: str) -> Verdict:
        stage = stage_of(kernel)
        tested = bench.visit(stage, judge.test(stage))
        assert tested.status is None, tested.reason
        assert tested.timings
        tested = bench.confirm(stage, tested)
        profile = judge.profile(stage, tested) if tested.status is None else None
        return judge.verdict(Candidate(source=correct), stage, tested, profile)

    return verdict


def test_the_file_of_a_plan_that_came_by_chance_does_not_ship(
    problem: Problem, seen: Seen, stage_of: Callable[[str], CompileStage]
) -> None:
    stage, seen.requests[:] = stage_of("right"), []
    chance = Diagnostic(severity="warning", code="not-repeatable", message="two traces differ by chance")
    report = stage.report.model_copy(update={"findings": (chance,)})
    run = GpuBench(problem, 3, worker=seen).run_file(stage.model_copy(update={"report": report}))
    assert (run.outputs, run.agrees, seen.requests) == ("different", False, [])
    assert "one of several" in run.reason


def test_a_confirmation_has_a_fresh_runner_another_seed_and_fresh_blocks(
    verdict_of: Callable[[str], Verdict], seen: Seen
) -> None:
    verdict = verdict_of("right")
    assert (verdict.status, verdict.stage, verdict.confirmed) == (Status.CORRECT, Stage.CONFIRMATION, True)
    first, second = seen.requests
    assert first.seed != second.seed
    assert first.salt != second.salt
    assert (first.confirmation, second.workloads) == (None, first.workloads)
    assert verdict.test is not None
    assert set(verdict.test.workloads) == {c.workload for c in verdict.test.checks} == {"small", "large"}
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
    assert verdict.reason.startswith("it passed once, and fails on other inputs or sizes in a fresh process: ")
    assert not verdict.confirmed


def test_what_is_right_at_the_sizes_of_a_visit_alone_is_not_confirmed(verdict_of: Callable[[str], Verdict]) -> None:
    verdict = verdict_of("sized")
    assert (verdict.status, verdict.stage, verdict.score) == (Status.WRONG, Stage.CONFIRMATION, None)
    assert verdict.test is not None
    assert {c.workload for c in verdict.test.checks if not c.passed} == {"large"}


@pytest.mark.parametrize(("kernel", "status", "everywhere"), [
    ("right", None, True), ("sized", Status.WRONG, True), ("wrong", Status.WRONG, False),
])  # fmt: skip
def test_what_has_no_times_is_checked_at_every_size_at_once(
    problem: Problem, seen: Seen, stage_of: Callable[[str], CompileStage], kernel: str, status: Status | None,
    everywhere: bool,
) -> None:  # fmt: skip
    """No confirmation follows."""
    stage = stage_of(kernel)
    untimed = stage.model_copy(update={"handle": replace(stage.handle, base=None)})
    untested = TestStage(report=TestReport(outcome="not_applicable", basis="interpreter", seconds=0.0))
    tested = GpuBench(problem, 3, worker=seen).visit(untimed, untested)
    assert (tested.status, tested.timings) == (status, ()), tested.reason
    assert tested.report.workloads == (("small", "large") if everywhere else ("small",))
    assert {c.workload for c in tested.report.checks} == set(tested.report.workloads)


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
