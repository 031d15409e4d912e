"""A closer look at one candidate, for a new best: hardware counters and sanitizer over a replay of its plan.

    found = Examination({}).run(kept, problem, timings, seed=seed, seconds=60.0)

Takes some seconds up to a minute, and a GPU that nobody is timed on. Never fails: what a tool could not do is a
warning, and a tool that may not count here is asked once.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from verifier.gpu.counters import Counted, count, diagnose
from verifier.gpu.replay_folder import Replay, write_folder
from verifier.gpu.sanitizer import MEMORY_ERROR, sanitize
from verifier.kept import Kept
from verifier.plan.schema import Plan
from verifier.problem import Problem
from verifier.timing import WorkloadTiming
from verifier.verdict import Diagnostic, Estimate

COUNT_SHARE = 0.5
"""Of the time, for the counters; the sanitizer has what they leave."""
MOST_KERNELS = 2
"""Whose counters are told, the slowest first."""


class Examination:
    """The tools as they are on one device. `environ` holds the CUDA_VISIBLE_DEVICES of their processes."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        self._refused = ""

    def run(
        self, kept: Kept, problem: Problem, timings: Sequence[WorkloadTiming], *, seed: int, seconds: float
    ) -> tuple[Diagnostic, ...]:
        """One diagnosis by counters for each of the slowest kernels, what the sanitizer found, and why a tool gave
        nothing. Errors are accesses outside of the buffers by a kernel of the plan; all else is at most a warning.

        Counters are of the timed workload that takes longest; the sanitizer, under which a kernel is many times slower,
        looks at the smallest of all that were traced.
        """
        if not kept.plan.kernels:
            return (_excuse("it launches no kernel of its own that counters and sanitizer could look at"),)
        end = time.monotonic() + seconds
        choices = {t.workload: t.choice for t in timings}
        slowest = max(timings, key=lambda t: t.decided.candidate_seconds or 0.0, default=None)
        counted_on = slowest.workload if slowest else kept.plan.programs[0].workload
        looked_at = _smallest(kept, counted_on)
        with tempfile.TemporaryDirectory(prefix="warpsmith-") as made:
            folders = {
                name: write_folder(
                    Path(made) / str(i), kept.plan_json, kept.blobs,
                    Replay(problem=problem, workload=name, seed=seed, choice=choices.get(name, {})),
                )
                for i, name in enumerate(dict.fromkeys((counted_on, looked_at)))
            }  # fmt: skip
            counted = self._counted(folders[counted_on], kept.plan, seconds * COUNT_SHARE)
            found, excuses = sanitize(folders[looked_at], seconds=end - time.monotonic(), environ=self._environ)
        lines = {image.name: image.line for image in kept.plan.kernels.values()}
        told = diagnose(counted, least_bytes(kept.plan, kept.profiled.estimates, counted_on), lines)
        return (
            *(weighed(f, kept.plan) for f in found),
            *told[:MOST_KERNELS],
            *(_excuse(text) for text in (*excuses, counted.excuse) if text),
        )

    def _counted(self, folder: Path, plan: Plan, seconds: float) -> Counted:
        if self._refused:
            return Counted(excuse=self._refused)
        counted = count(folder, plan, seconds=seconds, environ=self._environ)
        if counted.refused:
            self._refused = counted.excuse
        return counted


def _smallest(kept: Kept, default: str) -> str:
    """The traced workload with the least estimated time."""
    known = {e.workload: e.seconds for e in kept.profiled.estimates}
    traced = [p.workload for p in kept.plan.programs if p.workload in known]
    return min(traced, key=known.__getitem__, default=default)


def weighed(found: Diagnostic, plan: Plan) -> Diagnostic:
    """An error of the sanitizer stays one where a kernel of the plan went outside of its buffers."""
    names = "|".join(re.escape(image.name) for image in plan.kernels.values())
    own = found.code == MEMORY_ERROR and names and re.search(rf"(?<!\w)({names})(?!\w)", found.message)
    if found.severity == "error" and not own:
        return found.model_copy(update={"severity": "warning"})
    return found


def least_bytes(plan: Plan, estimates: Sequence[Estimate], workload: str) -> dict[str, int]:
    """Symbol of a kernel to the most distinct bytes that one of its launches must move, by the static estimate."""
    symbols = {image.cubin: image.name for image in plan.kernels.values()}
    least: dict[str, int] = {}
    for estimate in estimates:
        for launch in estimate.launches if estimate.workload == workload else ():
            if launch.cubin in symbols:
                name = symbols[launch.cubin]
                least[name] = max(least.get(name, 0), launch.bytes)
    return least


def _excuse(text: str) -> Diagnostic:
    return Diagnostic(severity="warning", code="not-examined", message=text)
