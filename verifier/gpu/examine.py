"""A closer look at one candidate, for the best of a search: hardware counters and sanitizer over a replay of its plan.

    found = examine(kept, problem, workload, seed=seed)

Takes some seconds up to minutes, and a GPU that nobody is timed on. Never fails: what a tool could not do is a warning.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from verifier.gpu.counters import count, diagnose
from verifier.gpu.replay_folder import Replay, write_folder
from verifier.gpu.sanitizer import sanitize
from verifier.judge import Kept
from verifier.plan.schema import Plan
from verifier.problem import Problem
from verifier.verdict import Diagnostic, Estimate


def examine(
    kept: Kept, problem: Problem, workload: str, *, seed: int, choice: Mapping[int, int] | None = None
) -> tuple[Diagnostic, ...]:
    """Errors of the sanitizer, one diagnosis by counters for each kernel, and why a tool gave nothing.

    `choice`: alternatives of forward steps that won the race. Memory errors are errors, races in shared memory what
    racecheck calls them.
    """
    with tempfile.TemporaryDirectory(prefix="warpsmith-") as made:
        replay = Replay(problem=problem, workload=workload, seed=seed, choice=dict(choice or {}))
        folder = write_folder(Path(made), kept.plan_json, kept.blobs, replay)
        found, excuses = sanitize(folder)
        counted = count(folder, kept.plan)
    lines = {image.name: image.line for image in kept.plan.kernels.values()}
    excuses = (*excuses, *([counted.excuse] if counted.excuse else []))
    return (
        *found,
        *diagnose(counted, least_bytes(kept.plan, kept.profiled.estimates, workload), lines),
        *(Diagnostic(severity="warning", code="not-examined", message=e) for e in excuses),
    )


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
