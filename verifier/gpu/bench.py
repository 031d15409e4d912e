"""The GPU half of a bench: correctness and time of a candidate that passed on the CPU, in one visit to the device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from verifier.bench import VISIT_SECONDS, CompileStage, TestStage
from verifier.errors import InfrastructureError
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import FileRun, Request, Visit
from verifier.judge import Kept
from verifier.problem import Problem, Role
from verifier.timing import WorkloadTiming
from verifier.verdict import Diagnostic


class GpuBench:
    """The host of a GPU worker. Free of CUDA: a judge and a runner are processes of their own. Thread-safe."""

    def __init__(
        self, problem: Problem, seed: int, device: str | None = None, *, worker: GpuWorker | None = None
    ) -> None:
        """`device` is the CUDA_VISIBLE_DEVICES of its processes, None for ours; benches of several problems may share
        one `worker`. Nothing starts yet.
        """
        self.problem, self._seed = problem, seed
        self._worker = worker or GpuWorker(environ={} if device is None else {"CUDA_VISIBLE_DEVICES": device})

    def prepare(self) -> None:
        """Starts the processes, so that the first visit finds them warm. Raises InfrastructureError."""
        self._worker.start()

    def close(self) -> None:
        self._worker.close()

    def visit(self, stage: CompileStage, test: TestStage) -> TestStage:
        """`test` as the GPU found it: its checks, its status, and times of the timed workloads where all passed.

        Where no check applies on the device, `test` comes back with a finding that says why. Raises
        InfrastructureError and ProblemError.
        """
        kept: Kept = stage.handle
        visit = self._worker.visit(self._request(stage, kept), _plans(kept))
        return joined(test, visit)

    def run_file(self, stage: CompileStage, timings: Sequence[WorkloadTiming] = ()) -> FileRun:
        """Runs the candidate's own file live beside its plan, on the same fresh inputs, before it is called best.

        `timings` are those of its visit: the plan runs with the alternatives chosen there. What the file does wrong is
        in the answer. Raises InfrastructureError and ProblemError.
        """
        raise InfrastructureError("the live path is not built yet")

    def _request(self, stage: CompileStage, kept: Kept) -> Request:
        traced = tuple(p.workload for p in kept.plan.programs)
        timed = {w.name for w in self.problem.having(Role.TIMED)} or set(traced)
        return Request(
            problem=self.problem,
            seed=self._seed,
            salt=hashlib.sha256(f"{self._seed}/{stage.report.plan}".encode()).hexdigest(),
            workloads=traced,
            timed=tuple(n for n in traced if n in timed) if kept.base is not None else (),
            limit_seconds=VISIT_SECONDS,
        )


def joined(test: TestStage, visit: Visit) -> TestStage:
    """The interpreter's report and the GPU's: the GPU decides, the interpreter's findings and traffic stay."""
    if visit.status is None and visit.test.outcome == "not_applicable":
        said = Diagnostic(severity="warning", code="not-on-gpu", message=f"not judged on the GPU: {visit.test.reason}")
        report = test.report.model_copy(update={"findings": (*test.report.findings, said)})
        return test.model_copy(update={"report": report})
    advice = tuple(f for f in test.report.findings if f.severity != "error")
    update: dict[str, Any] = {"findings": (*visit.test.findings, *advice), "traffic": test.report.traffic}
    report = visit.test.model_copy(update=update)
    seconds = test.seconds | {f"gpu {part}": spent for part, spent in visit.seconds.items()}
    if visit.status is not None:
        reason = visit.reason or visit.test.reason
        return TestStage(report=report, status=visit.status, reason=reason, seconds=seconds, parts=visit.parts)
    return TestStage(
        report=report, timings=visit.timings, steps=visit.steps, ceilings=visit.ceilings, seconds=seconds,
        parts=visit.parts,
    )  # fmt: skip


def _plans(kept: Kept) -> Plans:
    base, blobs = kept.base or (None, {})
    return Plans(kept.plan_json, kept.blobs, base, blobs)
