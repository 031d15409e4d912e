"""Every other baseline of a problem against eager, as ratios: `warpsmith baseline`.

On a GPU a baseline is judged like a candidate: its outputs are checked on all input distributions, then it is timed in
pairs with eager. A compiled one may be tuned first; that plan is kept, and later verdicts on this machine time against
it. Without a GPU the times are estimates of plans that were not tuned.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Literal

from verifier.baseline import Base, BaselineError, names
from verifier.gpu.found import Fit
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.tune import tune
from verifier.gpu.visit import Request
from verifier.interpreter.gate import Zygotes
from verifier.judge import PROFILE, PROFILE_JOB, Judge
from verifier.problem import Problem
from verifier.timing import Confirmation, WorkloadTiming
from verifier.verdict import Record

_LIMIT_SECONDS = 300.0
_RULES = Confirmation(min_blocks=8, pilot=8)
"""Fewer blocks than a candidate's confirmation: eager takes its time."""


class BaselineRow(Record):
    """One baseline on one workload; on none where `reason` says why it has no time."""

    baseline: str
    primary: bool = False
    """Candidates are timed against it."""
    tuned: bool = False
    workload: str = ""
    kind: Literal["measured", "estimate"] | None = None
    reason: str = ""
    seconds: float | None = None
    eager_seconds: float | None = None
    speedup: float | None = None
    """eager / baseline."""
    lower: float | None = None
    upper: float | None = None
    """Ends of the interval of `speedup`, where it was measured."""
    graphs: tuple[bool, bool] | None = None
    """Whether the baseline and eager ran as CUDA graphs."""


class Baselines:
    """The baselines of one problem on one device, or on none."""

    def __init__(self, problem: Problem, zygotes: Zygotes, fit: Fit, device: str | None, *, tuning: bool) -> None:
        """`device` is a CUDA_VISIBLE_DEVICES, None for estimates."""
        self._problem, self._zygotes, self._fit = problem, zygotes, fit
        self._device, self._tuning = device, tuning
        self._judge = Judge(problem, zygotes, target=fit.target.name)
        self._seed = secrets.randbits(62)

    def rows(self) -> Iterator[BaselineRow]:
        """Rows of each baseline, as they come. Raises InfrastructureError and ProblemError."""
        with ExitStack() as opened:
            worker = None
            if self._device is not None:
                worker = opened.enter_context(closing(GpuWorker(environ={"CUDA_VISIBLE_DEVICES": self._device})))
            for name in (*names(self._problem)[1:], *self._problem.excuses):
                for row in self._rows(name, worker):
                    yield row.model_copy(update={"primary": name == self._problem.baseline})

    def _rows(self, name: str, worker: GpuWorker | None) -> list[BaselineRow]:
        try:
            eager, base = self._judge.baseline("eager"), self._judge.baseline(name)
            if self._device is not None and self._tuning and (name == "compile" or base.plan["kernels"]):
                found = tune(self._problem, name, self._problem.timed, self._device)
                base = self._judge.baseline(name, found)
        except BaselineError as error:
            return [BaselineRow(baseline=name, reason=str(error))]
        return self._estimated(base, eager) if worker is None else self._measured(base, eager, worker)

    def _measured(self, base: Base, eager: Base, worker: GpuWorker) -> list[BaselineRow]:
        """Checked on all distributions, then timed."""
        timed = tuple(w.name for w in self._problem.timed)
        request = Request(
            problem=self._problem, seed=self._seed, workloads=timed, timed=timed, confirmation=_RULES, probe=False,
            steps=False, limit_seconds=_LIMIT_SECONDS,
        )  # fmt: skip
        visit = worker.visit(request, Plans(base.plan, base.blobs, eager.plan, eager.blobs))
        if visit.status is not None:
            return [BaselineRow(baseline=base.name, tuned=base.tuned, reason=f"{visit.status}: {visit.reason}")]
        rows = [_row(base, timing) for timing in visit.timings]
        missing = [f.message for f in visit.test.findings if f.code == "not-timed"] or [visit.reason]
        return rows or [BaselineRow(baseline=base.name, tuned=base.tuned, reason=missing[0])]

    def _estimated(self, base: Base, eager: Base) -> list[BaselineRow]:
        payload = {"target": self._fit.figures.name, "plan": base.plan, "base": eager.plan}
        blobs = base.blobs | {f"base/{name}": data for name, data in eager.blobs.items()}
        result = self._zygotes.compile.run(PROFILE_JOB, payload, blobs, limits=PROFILE)
        if result.outcome != "ok":
            return [BaselineRow(baseline=base.name, reason=f"no estimate: {result.error or result.outcome}"[:300])]
        if any(d["code"] == "unknown-work" for d in result.value["diagnosis"]):
            return [BaselineRow(baseline=base.name, reason="no estimate: how often it loops depends on data")]
        return [
            BaselineRow(
                baseline=base.name, workload=e["workload"], kind="estimate", seconds=e["seconds"],
                eager_seconds=e["base_seconds"], speedup=e["base_seconds"] / e["seconds"],
            )
            for e in result.value["estimates"]
        ]  # fmt: skip


def _row(base: Base, timing: WorkloadTiming) -> BaselineRow:
    said = timing.confirmed or timing.decided
    ends = [None if end is None else math.exp(end) for end in (said.lower, said.upper)]
    return BaselineRow(
        baseline=base.name, tuned=base.tuned, workload=timing.workload, kind="measured",
        seconds=said.candidate_seconds, eager_seconds=said.base_seconds, speedup=said.speedup, lower=ends[0],
        upper=ends[1], graphs=timing.graphs,
    )  # fmt: skip
