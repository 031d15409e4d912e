"""The GPU half of a bench: correctness and time of a candidate that passed on the CPU, in one visit to the device; for
a new best a second one that confirms, and a closer look.

The confirmation takes a fresh runner and a new seed: new weights, new inputs, new memory, and nothing of what the
candidate's kernels may have left in their context. The judge's process stays: it never met anything of the candidate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from verifier.bench import CONFIRM_SECONDS, EXAMINE_SECONDS, FILE_SECONDS, VISIT_SECONDS, CompileStage, TestStage
from verifier.errors import InfrastructureError, first_line
from verifier.gpu.contest import NoContestant
from verifier.gpu.examine import Examination
from verifier.gpu.found import choose_target
from verifier.gpu.nvml import describe
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request, Visit
from verifier.kept import Kept, LiveFile
from verifier.plan.live_rules import refuse_live
from verifier.plan.twice import NOT_REPEATABLE
from verifier.problem import Problem, Role
from verifier.timing import CONFIRMATION, Confirmation, WorkloadTiming
from verifier.verdict import Diagnostic, FileRun, Status, TestReport

_SPARE_SECONDS = 5.0
"""Of what is reserved, for starting and ending processes."""
_FILE_SECONDS = FILE_SECONDS - _SPARE_SECONDS
_BUILD_SHARE = 0.75
"""Of a live visit for what builds and compiles."""
_FEWEST = 8
"""Blocks of a confirmation on which one block takes seconds."""


class GpuBench:
    """Implements `Device`: the host of a GPU worker. Free of CUDA: a judge and a runner are processes of their own.
    Thread-safe.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        device: str | None = None,
        *,
        target: str | None = None,
        worker: GpuWorker | None = None,
        live_seconds: float = VISIT_SECONDS - _SPARE_SECONDS,
    ) -> None:
        """`device` is the CUDA_VISIBLE_DEVICES of its processes, None for ours. `target`: what plans are made for; it
        must fit the device. Benches of several problems may share one `worker`. `live_seconds`: the most that a live
        visit takes, in which the file may build its code. Nothing starts yet.
        """
        self.problem, self._seed, self._live_seconds = problem, seed, live_seconds
        self._device, self._target = device, target
        environ = {} if device is None else {"CUDA_VISIBLE_DEVICES": device, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        self._worker = worker or GpuWorker(environ=environ)
        self._examination = Examination(environ)

    def prepare(self) -> str:
        """Starts the processes, so that the first visit finds them warm, and gives the name of the GPU, empty where the
        driver does not tell. Raises InfrastructureError, and UsageError where the target does not fit the GPU.
        """
        gpu = describe(self._device) if self._device is not None else None
        if self._target is not None:
            choose_target(self._target, gpu, measured=True)
        self._worker.start()
        return gpu.name if gpu else ""

    def close(self) -> None:
        self._worker.close()

    def visit(self, stage: CompileStage, test: TestStage) -> TestStage:
        """`test` as the GPU found it: its checks, its status, and times of the timed workloads where all passed. Sizes
        that are held out wait for `confirm`, without which nothing is best; what cannot be timed has no confirmation,
        and is checked on them here.

        Where no check applies on the device, `test` comes back with a finding that says why. Raises
        InfrastructureError and ProblemError.
        """
        if isinstance(stage.handle, LiveFile):
            try:
                return joined(test, self._live(stage.handle, self._seed))
            except NoContestant as fault:
                return _noted(test, "not-live", f"it cannot be traced, and was not run live: {fault}")
        kept: Kept = stage.handle
        visit = self._worker.visit(self._request(stage, kept, self._seed), plans_of(kept))
        if visit.status is Status.UNTRACEABLE and not refuse_live(self.problem.library):
            with suppress(NoContestant):
                visit = self._live(_live_file(stage, visit.reason), self._seed)
        return joined(test, visit)

    def confirm(self, stage: CompileStage, test: TestStage) -> TestStage:
        """All of the visit again with another seed in a fresh runner and on the sizes that are held out, then times on
        fresh blocks."""
        limit = CONFIRM_SECONDS - _SPARE_SECONDS
        again = {"confirmation": rules_for(test.timings), "later": (), "limit_seconds": limit}
        if test.report.path == "live":
            return confirmed(test, self._live(_live_file(stage), _other_seed(self._seed, stage), again))
        kept: Kept = stage.handle
        request = self._request(stage, kept, _other_seed(self._seed, stage)).model_copy(update=again)
        return confirmed(test, self._worker.visit(request, plans_of(kept), fresh_runner=True))

    def examine(self, stage: CompileStage, test: TestStage) -> TestStage:
        """Hardware counters and sanitizer. An access outside of the buffers by one of the candidate's own kernels makes
        it out of bounds: it may fault on other memory, and the interpreter would have said the same. Races are
        warnings: the sanitizer knows too little of the barriers that Triton makes.
        """
        if test.report.path == "live":
            return test
        kept: Kept = stage.handle
        found = self._examination.run(
            kept,
            self.problem,
            test.timings,
            seed=_other_seed(self._seed, stage),
            seconds=EXAMINE_SECONDS - _SPARE_SECONDS,
        )
        return examined(test, found)

    def compare_file(self, stage: CompileStage, test: TestStage) -> TestStage:
        """The candidate's own file beside its plan. That it could not be run is said, and the search goes on."""
        if test.report.path == "live":
            return test
        try:
            return test.model_copy(update={"file": self.run_file(stage, test.timings)})
        except InfrastructureError as fault:
            said = first_line(fault)[:300]
            return _noted(test, "file-not-run", f"the file itself was not run beside its plan: {said}")

    def run_file(self, stage: CompileStage, timings: Sequence[WorkloadTiming] = ()) -> FileRun:
        """Runs the candidate's own file live beside its plan, on the same fresh inputs, before it is called best.

        `timings` are those of its visit: the plan runs with the alternatives chosen there. What the file does wrong is
        in the answer, also that its plan is one of several: then it is not run. Raises InfrastructureError and
        ProblemError.
        """
        if any(f.code == NOT_REPEATABLE for f in stage.report.findings):
            return FileRun(outputs="different", reason="this plan is one of several that it makes by chance", seconds=0)
        kept: Kept = stage.handle
        seed = _other_seed(self._seed, stage)
        request = self._request(stage, kept, seed).model_copy(
            update={"path": "file", "choices": {t.workload: t.choice for t in timings}, "limit_seconds": _FILE_SECONDS}
        )
        return self._worker.run_file(request, Plans(kept.plan_json, kept.blobs, source=kept.source))

    def _live(self, file: LiveFile, seed: int, more: Mapping[str, Any] | None = None) -> Visit:
        """The visit of a file that runs in a process of its own."""
        plans = Plans(source=file.source, built=file.built)
        if file.base is not None:
            plans = replace(plans, base=file.base.plan, base_blobs=file.base.blobs)
        changes = dict(more or {})
        request = live_request(self.problem, file, seed, changes.get("limit_seconds", self._live_seconds))
        return self._worker.visit(request.model_copy(update=changes), plans)

    def _request(self, stage: CompileStage, kept: Kept, seed: int) -> Request:
        traced = tuple(p.workload for p in kept.plan.programs)
        timed = frozenset[str]() if kept.base is None else kept.base.workloads
        return Request(
            problem=self.problem,
            seed=seed,
            salt=hashlib.sha256(f"{seed}/{stage.report.plan}".encode()).hexdigest(),
            workloads=traced,
            later=_later(self.problem, traced, timed),
            held=kept.held,
            timed=tuple(n for n in traced if n in timed),
            base="" if kept.base is None else kept.base.name,
            limit_seconds=VISIT_SECONDS,
        )


def live_request(problem: Problem, file: LiveFile, seed: int, seconds: float) -> Request:
    """The visit of a file that nothing traces, of at most `seconds`."""
    timed = frozenset[str]() if file.base is None else file.base.workloads
    return Request(
        path="live",
        problem=problem,
        seed=seed,
        salt=hashlib.sha256(f"{seed}/{file.source}".encode()).hexdigest(),
        workloads=file.workloads,
        later=_later(problem, file.workloads, timed),
        timed=tuple(n for n in file.workloads if n in timed),
        base="" if file.base is None else file.base.name,
        build_seconds=_BUILD_SHARE * seconds,
        limit_seconds=seconds,
    )


def _later(problem: Problem, workloads: Sequence[str], timed: Collection[str]) -> tuple[str, ...]:
    """Those that are held out and not timed."""
    held_out = {w.name for w in problem.having(Role.HELD_OUT)}
    return tuple(n for n in workloads if n in held_out and n not in timed)


def _live_file(stage: CompileStage, reason: str = "") -> LiveFile:
    """What runs live of a candidate: one that nothing traces, or one whose plan cannot be replayed."""
    if isinstance(stage.handle, LiveFile):
        return stage.handle
    kept: Kept = stage.handle
    return LiveFile(kept.source, reason, tuple(p.workload for p in kept.plan.programs), kept.base)


def rules_for(timings: Sequence[WorkloadTiming]) -> Confirmation:
    """Rules of a confirmation that ends in time, by what the blocks of the visit took."""
    spent = [t.decided.seconds / max(1, t.decided.next_block - t.decided.first_block) for t in timings]
    share = CONFIRM_SECONDS / 3 / max(1, len(timings))
    blocks = min((int(share / seconds) for seconds in spent if seconds > 0), default=CONFIRMATION.pilot)
    least = max(_FEWEST, min(blocks, CONFIRMATION.pilot))
    return CONFIRMATION.model_copy(update={"pilot": least, "min_blocks": least})


def joined(test: TestStage, visit: Visit) -> TestStage:
    """The interpreter's report and the GPU's: the GPU decides, the interpreter's findings and traffic stay."""
    if visit.status is None and visit.test.outcome == "not_applicable":
        return _noted(test, "not-on-gpu", f"not judged on the GPU: {visit.test.reason}")
    advice = tuple(f for f in test.report.findings if f.severity != "error")
    update: dict[str, Any] = {"findings": (*visit.test.findings, *advice), "traffic": test.report.traffic}
    report = visit.test.model_copy(update=update)
    seconds = test.seconds | {f"gpu {part}": spent for part, spent in visit.seconds.items()}
    if visit.status is not None:
        reason = visit.reason or visit.test.reason
        return TestStage(
            report=report, status=visit.status, reason=reason, seconds=seconds, parts=visit.parts,
            isolation=visit.isolation,
        )  # fmt: skip
    return TestStage(
        report=report, timings=visit.timings, steps=visit.steps, ceilings=visit.ceilings, seconds=seconds,
        parts=visit.parts, isolation=visit.isolation,
    )  # fmt: skip


def confirmed(test: TestStage, visit: Visit) -> TestStage:
    """What the second visit found takes the place of the first one's; it stays where the second could not judge."""
    report = visit.test
    seconds = test.seconds | {f"confirm {part}": spent for part, spent in visit.seconds.items()}
    if visit.status is Status.TIMEOUT and not visit.runner_lost:  # many slow runs, and none that hangs
        return _noted(test, "not-confirmed", f"not confirmed: {visit.reason}")
    if visit.status is not None:
        reason = (
            f"it passed once, and fails on other inputs or sizes in a fresh process: {visit.reason or report.reason}"
        )
        return TestStage(
            report=report, status=visit.status, reason=reason, seconds=seconds, parts=visit.parts, confirmation=True,
            isolation=visit.isolation,
        )  # fmt: skip
    missing = {t.workload for t in test.timings} - {t.workload for t in visit.timings if t.confirmed is not None}
    if report.outcome == "not_applicable" or missing:
        said = [report.reason, *(f.message for f in report.findings if f.code == "not-timed"), "no times came of it"]
        return _noted(test, "not-confirmed", f"not confirmed: {next(filter(None, said))}")
    report = report.model_copy(update={"traffic": test.report.traffic, "findings": _all(report, test.report)})
    return TestStage(
        report=report, timings=visit.timings, steps=visit.steps, ceilings=visit.ceilings, seconds=seconds,
        parts=visit.parts, confirmation=True, isolation=visit.isolation,
    )  # fmt: skip


def examined(test: TestStage, found: Sequence[Diagnostic]) -> TestStage:
    """The stage with what a closer look found; an error decides."""
    errors = [f for f in found if f.severity == "error"]
    changed = test.model_copy(update={"examined": tuple(found)})
    if not errors:
        return changed
    reason = f"the sanitizer found an access outside of its buffers: {errors[0].message}"
    report = test.report.model_copy(
        update={"outcome": "failed", "reason": reason, "findings": (*errors, *test.report.findings)}
    )
    update = {"report": report, "status": Status.OUT_OF_BOUNDS, "reason": reason, "confirmation": True}
    return changed.model_copy(update=update)


def _noted(test: TestStage, code: str, message: str) -> TestStage:
    said = Diagnostic(severity="warning", code=code, message=message)
    return test.model_copy(
        update={"report": test.report.model_copy(update={"findings": (*test.report.findings, said)})}
    )


def _all(*reports: TestReport) -> tuple[Diagnostic, ...]:
    return tuple(dict.fromkeys(f for report in reports for f in report.findings))


def _other_seed(seed: int, stage: CompileStage) -> int:
    """Of the confirmation: as secret as `seed`, and another one for each plan."""
    return int.from_bytes(hashlib.sha256(f"{seed}/confirmation/{stage.report.plan}".encode()).digest()[:7])


def plans_of(kept: Kept) -> Plans:
    """The candidate's plan and its base's."""
    if kept.base is None:
        return Plans(kept.plan_json, kept.blobs)
    return Plans(kept.plan_json, kept.blobs, kept.base.plan, kept.base.blobs)
