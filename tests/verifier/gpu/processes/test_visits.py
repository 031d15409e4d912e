"""Supervisor, judge and runner as real processes on a host device: what each kind of candidate comes to."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verifier.errors import InfrastructureError, ProblemError
from verifier.gpu.contest import Contestants, NoContestant
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request, Visit
from verifier.loader import parse_problem
from verifier.problem import Problem
from verifier.timing import Rules
from verifier.verdict import Status

Make = Callable[..., Plans]
Ask = Callable[..., Request]
HERE = Path(__file__).parent
BUSY = Rules(max_blocks=3, max_seconds=30, host_share=0.0, spread=0.0, uneven=0.0)
"""A busy machine throws out no block, and all three are taken."""
SHORT = 0.6
"""Seconds of the deadline where something hangs."""
SOON = SHORT + 30
"""Seconds in which the verdict after a hang is there: two on a machine of one's own, and far from a hang's 1,000."""


def codes(visit: Visit) -> set[str]:
    return {f.code for f in visit.test.findings}


@pytest.mark.parametrize("kernel", ["right", None])
def test_a_right_plan_passes(worker: GpuWorker, plans: Make, request_of: Ask, kernel: str | None) -> None:
    visit = worker.visit(request_of(), plans(kernel))
    assert (visit.status, visit.test.outcome) == (None, "passed"), visit.reason
    assert {c.draw for c in visit.test.checks} == {"task", "normal", "heavy_tailed", "sparse", "scaled", "integers"}
    assert visit.test.basis == "gpu"
    assert not visit.runner_lost


WRONG = {
    "wrong": (Status.WRONG, "wrong-value"),
    "unwritten": (Status.WRONG, "wrong-value"),
    "mutating": (Status.WRONG, "input-mutated"),
    "late": (Status.WRONG, "wrong-value"),
    "adds_guard": (Status.WRONG, "wrong-value"),
    "adds_guard_of_output": (Status.WRONG, "wrong-value"),
    "overrun": (Status.OUT_OF_BOUNDS, "out-of-bounds"),
    "overrun_output": (Status.OUT_OF_BOUNDS, "wrote-past"),
    "memory": (Status.RUNTIME_ERROR, "out-of-memory"),
}


@pytest.mark.parametrize("kernel", WRONG)
def test_a_wrong_plan_fails_and_keeps_its_runner(worker: GpuWorker, plans: Make, request_of: Ask, kernel: str) -> None:
    before = worker.pids()
    visit = worker.visit(request_of(), plans(kernel))
    assert visit.status is WRONG[kernel][0], visit.reason
    assert WRONG[kernel][1] in codes(visit)
    assert visit.test.outcome == "failed"
    assert (worker.pids()["runner"] == before["runner"]) is (kernel != "memory")  # which was tried in a new one too


def test_a_device_that_was_full_once_is_no_fault(
    worker: GpuWorker, plans: Make, request_of: Ask, problem_text: str, tmp_path: Path
) -> None:
    """What the judge keeps of other problems may have been in the way of a runner, and of a reference."""
    once = f"""
        import os
        if not os.path.exists({str(tmp_path / "full")!r}):
            os.mkdir({str(tmp_path / "full")!r})
            raise torch.OutOfMemoryError("full")
        return x"""
    crowded = parse_problem(problem_text.replace("\n        return x", once), file="crowded.py", name="crowded")
    for visit in (
        worker.visit(request_of(), plans("memory_once")),
        worker.visit(request_of(problem=crowded), plans("right")),
    ):
        assert (visit.status, visit.test.outcome) == (None, "passed"), visit.reason
    assert (tmp_path / "full").exists()
    Path(f"/tmp/warpsmith-full-of-{worker.pids()['nursery'][0]}").unlink()


def test_a_full_device_hides_no_wrong_answer(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    request = request_of(timed=("small",), draws=("task",), repeats=1, probe=False, salt="s", rules=BUSY)
    visit = worker.visit(request, plans("second_try", based=True))
    assert visit.status is Status.WRONG, visit.reason


def test_a_store_of_what_a_guard_may_hold_is_seen_on_one_draw(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    visit = worker.visit(request_of(draws=("task",)), plans("overrun_ones"))
    assert visit.status is Status.OUT_OF_BOUNDS


def test_memory_that_nothing_wrote_is_nan(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    assert "NaN instead of a finite value" in worker.visit(request_of(), plans("unwritten")).reason


def test_runs_that_differ_are_nondeterministic(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    visit = worker.visit(request_of(), plans("flaky"))
    assert visit.status is None, visit.reason
    assert codes(visit) == {"nondeterministic"}
    assert len(visit.test.checks) - 5 in (5, 3)  # all repeats of the first draw are compared; a busy machine makes few


LOST = {
    "crash": (Status.CRASH, "died"),
    "forge": (Status.CRASH, "broke-protocol"),
    "result": (Status.CRASH, "broke-protocol"),
    "flood": (Status.CRASH, "broke-protocol"),
    "deep": (Status.CRASH, "broke-protocol"),
    "hang": (Status.TIMEOUT, "hang"),
}


@pytest.mark.parametrize("kernel", LOST)
def test_a_lost_runner_costs_one_verdict(worker: GpuWorker, plans: Make, request_of: Ask, kernel: str) -> None:
    start = time.perf_counter()
    visit = worker.visit(request_of(**{"command_seconds": SHORT} if kernel == "hang" else {}), plans(kernel))
    assert visit.status is LOST[kernel][0], visit.reason
    assert codes(visit) & {LOST[kernel][1], "wrong-value"}
    old = worker.pids()
    again = worker.visit(request_of(), plans("right"))
    assert time.perf_counter() - start < SOON
    assert again.status is None, again.reason
    assert worker.pids()["judge"] == old["judge"]


def test_many_slow_runs_are_the_candidates_fault(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    """Each ends in time, and all together would pass the limit of the visit, which would be ours."""
    visit = worker.visit(request_of(limit_seconds=5.0), plans("slower"))
    assert (visit.status, codes(visit)) == (Status.TIMEOUT, {"hang"}), visit.reason
    assert worker.visit(request_of(), plans("right")).status is None


def test_a_right_plan_that_is_too_slow_to_be_timed_is_right(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    before = worker.pids()
    request = request_of(timed=("small",), draws=("task",), repeats=1, probe=False, limit_seconds=4.0)
    visit = worker.visit(request, plans("slower", based=True))
    assert (visit.status, visit.test.outcome, visit.timings) == (None, "passed", ()), visit.reason
    (said,) = visit.test.findings
    assert said.message == "small was not timed: it is too slow, its runs take too long together"
    assert worker.pids() == before


def test_no_process_of_a_lost_runner_stays(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    worker.start()
    pid = worker.pids()["runner"][0]
    worker.visit(request_of(), plans("crash"))
    assert not Path(f"/proc/{pid}").exists()


def test_runners_that_end_as_soon_as_they_begin_do_not_end_their_nursery(worker: GpuWorker) -> None:
    worker.start()
    nursery, runners = worker._nursery, []
    assert nursery is not None
    for _ in range(12):
        runners.append(nursery.spawn())
        nursery.end(runners[-1])
    assert nursery.process.poll() is None
    assert not [r.pid for r in runners if Path(f"/proc/{r.pid}").exists()]


def test_where_no_file_can_run_live_the_judge_stays(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    worker.start()
    before, kept = worker.pids(), worker._contestants
    worker._contestants = Contestants("no_such_module:open_device", {}, ())
    with pytest.raises(NoContestant, match="no_such_module"):
        worker.visit(request_of(path="live"), Plans(source="ModelNew = 1"))
    worker._contestants = kept
    assert worker.visit(request_of(), plans("right")).status is None
    assert worker.pids() == before


def test_a_runner_that_dies_between_visits_is_nobodys_fault(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    worker.start()
    os.kill(worker.pids()["runner"][0], signal.SIGKILL)
    assert worker.visit(request_of(), plans("right")).status is None


def test_a_judge_that_dies_is_replaced(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    os.kill(worker.pids()["judge"][0], signal.SIGSTOP)
    with pytest.raises(InfrastructureError, match="the judge gave no answer"):
        worker.visit(request_of(limit_seconds=0.3), plans("right"))
    assert worker.visit(request_of(), plans("right")).status is None


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        (lambda p: p.update(target="sm_1"), Status.REJECTED, "unknown target"),
        (lambda p: p["programs"][0].update(workload="w"), Status.REJECTED, "no program for workload small"),
        (lambda p: p["programs"][0]["values"][0].update(shape=[30], stride=[10]), Status.REJECTED, "its inputs are"),
        (lambda p: p["programs"][0].update(output={"t": "list", "items": []}), Status.WRONG, "returns a list"),
        (lambda p: p["programs"][0]["values"][2].update(shape=[299]), Status.UNTRACEABLE, "cannot be replayed"),
        (lambda p: p["programs"][0]["storages"].append({"bytes": 1 << 40, "device": "cuda", "origin": "input"})
         or p["programs"][0]["values"].append({**p["programs"][0]["values"][0], "storage": 3})
         or p["programs"][0]["inputs"].append(3), None, "it needs at least"),
    ],
)  # fmt: skip
def test_a_plan_that_does_not_belong_is_named(
    worker: GpuWorker, plans: Make, request_of: Ask, change: Callable[..., object], status: Status | None, text: str
) -> None:
    visit = worker.visit(request_of(), plans("right", change=change))
    assert visit.status is status, visit.reason
    assert text in visit.reason
    assert visit.test.outcome == ("failed" if status else "not_applicable")


def test_a_broken_problem_is_the_users(worker: GpuWorker, plans: Make, request_of: Ask, problem_text: str) -> None:
    broken = parse_problem(problem_text.replace("x * 2.0 + y", "x + z"), file="broken.py", name="broken")
    with pytest.raises(ProblemError, match=r"broken.py:13: NameError"):
        worker.visit(request_of(problem=broken), plans("right"))


def test_a_random_reference_is_refused_by_name(
    worker: GpuWorker, plans: Make, request_of: Ask, problem_text: str
) -> None:
    text = problem_text.replace("x * 2.0 + y", "x * torch.rand(()) + y")
    visit = worker.visit(request_of(problem=parse_problem(text, file="r.py", name="r")), plans("right"))
    assert (visit.test.outcome, visit.status) == ("not_applicable", None)
    assert "random" in visit.reason


def test_pairs_of_candidate_and_base(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    visit = worker.visit(request_of(timed=("small",), rules=BUSY), plans("right", based=True))
    assert visit.status is None, visit.reason
    (timing,) = visit.timings
    assert timing.decided.blocks + sum(timing.decided.thrown.values()) == 3
    assert timing.graphs == (False, False)
    assert timing.host_bound_seconds is not None
    assert timing.decided.candidate_seconds is not None
    assert 0 < timing.decided.candidate_seconds < timing.host_bound_seconds * 20


@pytest.mark.parametrize("kernel", ["late", "memo", "spoils"])
def test_what_is_wrong_only_when_timed_is_wrong(worker: GpuWorker, plans: Make, request_of: Ask, kernel: str) -> None:
    request = request_of(timed=("small",), draws=("task",), repeats=1, probe=False, rules=Rules(max_blocks=2))
    visit = worker.visit(request, plans(kernel, based=True))
    assert visit.status is Status.WRONG, visit.reason
    assert codes(visit) == {"wrong-when-timed"}


@pytest.mark.parametrize("kernel", ["keyed", "idle"])
def test_memory_of_inputs_helps_no_timed_call(worker: GpuWorker, plans: Make, request_of: Ask, kernel: str) -> None:
    """Both take 20 ms on inputs that they have not seen, and next to nothing on others."""
    request = request_of(timed=("small",), draws=("task",), repeats=1, probe=False, rules=BUSY)
    visit = worker.visit(request, plans(kernel, based=True))
    assert visit.status is None, visit.reason
    (timing,) = visit.timings
    assert timing.decided.candidate_seconds is not None
    assert timing.decided.candidate_seconds > 0.005
    assert timing.decided.pairs >= 6


def test_where_the_base_keeps_its_inputs_for_two_blocks_the_same_holds(plans: Make, request_of: Ask) -> None:
    request = request_of(timed=("small",), draws=("task",), repeats=1, probe=False, rules=BUSY)
    with GpuWorker("host_kernels:open_for_large_inputs", paths=[HERE], spares=0) as worker:
        found = {kernel: worker.visit(request, plans(kernel, based=True)) for kernel in ("right", "memo", "keyed")}
    assert found["right"].status is None, found["right"].reason
    assert found["right"].timings[0].decided.pairs >= 6
    assert codes(found["memo"]) == {"wrong-when-timed"}
    assert (found["keyed"].timings[0].decided.candidate_seconds or 0.0) > 0.005


def alternatives(*behaviours: str) -> Callable[[dict[str, Any]], None]:
    """Gives the launch several alternatives."""

    def change(plan: dict[str, Any]) -> None:
        (step,) = (s for s in plan["programs"][0]["forward"] if s["kind"] == "launch")
        step["alternatives"] = [{**step["alternatives"][0], "config": b} for b in behaviours]

    return change


def test_the_fastest_alternative_is_timed(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    request = request_of(timed=("small",), rules=Rules(max_blocks=2))
    visit = worker.visit(request, plans("right", based=True, change=alternatives("slow", "right", "slow")))
    assert visit.status is None, visit.reason
    assert list(visit.timings[0].choice.values()) == [1]


def test_a_fast_alternative_must_be_right(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    visit = worker.visit(
        request_of(timed=("small",)), plans("right", based=True, change=alternatives("slow", "unwritten"))
    )
    assert visit.status is Status.WRONG
    assert visit.timings == ()


def test_a_hang_while_timed_ends_in_time(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    request = request_of(timed=("small",), draws=("task",), repeats=1, probe=False, command_seconds=SHORT)
    worker.start()
    start = time.perf_counter()
    visit = worker.visit(request, plans("stall", based=True))
    assert visit.status is Status.TIMEOUT, visit.reason
    assert worker.visit(request_of(), plans("right")).status is None
    assert time.perf_counter() - start < SOON


def test_a_base_that_cannot_be_timed_is_said(worker: GpuWorker, plans: Make, request_of: Ask) -> None:
    made = plans("right")
    made = replace(made, base=plans("memory").plan, base_blobs=made.blobs)
    visit = worker.visit(request_of(timed=("small",)), made)
    assert (visit.status, visit.test.outcome, visit.timings) == (None, "passed", ())
    assert codes(visit) == {"not-timed"}


@pytest.mark.parametrize(("behaviour", "said"), [("wrong", "its base flex is wrong"), ("right", "")])
def test_a_base_that_is_not_the_reference_is_checked(
    worker: GpuWorker, plans: Make, request_of: Ask, behaviour: str, said: str
) -> None:
    """A wrong base would make a wrong speed-up: nothing is timed, and the candidate is not to blame."""
    base = plans(behaviour)
    made = replace(plans("right"), base=base.plan, base_blobs=base.blobs)
    rules = Rules(max_blocks=2, min_blocks=0)
    visit = worker.visit(request_of(timed=("small",), base="flex", rules=rules), made)
    assert (visit.status, visit.test.outcome) == (None, "passed")
    assert [t.base for t in visit.timings] == ([] if said else ["flex"])
    assert said in " ".join(f.message for f in visit.test.findings if f.code == "not-timed")


def test_many_visits_leave_nothing_behind(worker: GpuWorker, plans: Make, request_of: Ask, problem: Problem) -> None:
    def descriptors() -> dict[str, list[int]]:
        every = {"ours": [os.getpid()], **worker.pids()}
        return {part: [len(os.listdir(f"/proc/{p}/fd")) for p in pids] for part, pids in every.items()}

    kernels = ["right", "wrong", "overrun", "memory", None]
    for kernel in kernels:
        worker.visit(request_of(), plans(kernel))
    before = descriptors()
    for i in range(50):
        worker.visit(request_of(seed=i, draws=("task",)), plans(kernels[i % len(kernels)]))
    assert descriptors() == before


def test_the_supervisor_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, json, verifier.gpu.supervisor; print(json.dumps([m for m in sys.modules if m == 'torch']))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == []
