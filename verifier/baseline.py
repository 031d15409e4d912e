"""Baselines: what candidates are timed against, each as a plan.

`eager` is the problem's `Model` as it is and `compile` is `torch.compile` of it; others are classes of the problem file
that `BASELINES` names. Except for `eager` they are traced by a job whose `torch.compile` works, so compiled ones
are plans too: the runner that replays a candidate replays its base, and nothing compiles there.

A trace has no device to tune on. `verifier.gpu.tune` runs Inductor once on a GPU with autotuning; what it chose is
traced like the rest. Plans that took a compiler are kept in $XDG_CACHE_HOME/warpsmith/baselines, by problem, target,
torch and Triton.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verifier.errors import UsageError
from verifier.loader import render
from verifier.plan.reader import PlanError, read_plan
from verifier.problem import BUILT_IN, Problem, Workload
from verifier.sandbox.zygote import JobResult
from verifier.verdict import BaseReport

TRACE_JOB = "verifier.plan.trace:trace_job"
BASELINE_JOB = "verifier.plan.inductor:baseline_job"
_COMPILED = """

class Compiled__(Model):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        import torch

        self.compiled__ = torch.compile(super().forward, mode="max-autotune-no-cudagraphs")

    def forward(self, *args, **kwargs):
        return self.compiled__(*args, **kwargs)
"""
_FORMAT = 1

Run = Callable[[str, dict[str, Any]], JobResult]
"""Runs a job by name in a warm server."""


class BaselineError(Exception):
    """A problem does not have the baseline, or it cannot be traced. One sentence."""


@dataclass(frozen=True)
class Base:
    """A baseline of one problem. Its plan has a program for each workload that was traced."""

    name: str
    plan: dict[str, Any]
    """Plan JSON; whoever replays it reads it again."""
    blobs: dict[str, bytes]
    tuned: bool = False
    """Inductor chose its kernels by their times on a device."""
    instead: str = ""
    """Why it stands for the problem's own baseline, where it does."""

    @property
    def workloads(self) -> frozenset[str]:
        """Those that it was traced for: the timed ones."""
        return frozenset(program["workload"] for program in self.plan["programs"])

    @cached_property
    def report(self) -> BaseReport:
        digest = hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()
        return BaseReport(name=self.name, tuned=self.tuned, plan=digest, instead=self.instead)


def names(problem: Problem) -> tuple[str, ...]:
    """Of the baselines that the problem has."""
    return (*BUILT_IN, *problem.baselines)


def source_of(problem: Problem, workload: Workload, name: str) -> tuple[str, str]:
    """The file's text for one workload and the class that is the baseline. Raises BaselineError."""
    text = render(problem, workload)
    if name == "eager":
        return text, "Model"
    if name == "compile":
        return text + _COMPILED, "Compiled__"
    if name in problem.baselines:
        return text, problem.baselines[name]
    reason = problem.excuses.get(name, f"it has {', '.join(names(problem))}")
    raise BaselineError(f"{problem.name} has no baseline {name}: {reason}")


class Bases:
    """The baselines of a problem for one target, each traced once and kept."""

    def __init__(self, problem: Problem, target: str, run: Run) -> None:
        """`run` runs a job by its name on a payload, in a warm server."""
        self._problem, self._target, self._run = problem, target, run

    def get(self, name: str, arguments: Sequence[Mapping[str, Any]], tuned: Mapping[str, Any] | None = None) -> Base:
        """A baseline, kept from earlier or traced. `arguments` are the SPECs of each timed workload, `tuned` what
        `gpu.tune` found. Raises BaselineError.
        """
        kept = None if tuned else find_base(self._problem, name, self._target, tuned=False)
        if kept is None:
            kept = self._traced(name, arguments, tuned)
            if name != "eager":
                keep_base(kept, self._problem, self._target)
        return kept

    def eager(self, arguments: Sequence[Mapping[str, Any]]) -> Base | None:
        """The reference as it is, None where it cannot be traced."""
        with suppress(BaselineError):
            return self.get("eager", arguments)
        return None

    def primary(self, arguments: Sequence[Mapping[str, Any]], tuned: str | None = None) -> Base | None:
        """The problem's baseline, else eager; None where neither can be traced. `tuned`: digest of the kept plan that
        it must be. Raises UsageError where that one is gone.
        """
        name = self._problem.baseline
        if tuned is not None:
            kept = find_base(self._problem, name, self._target, tuned=True)
            if kept is None or kept.report.plan != tuned:
                raise UsageError(
                    f"the tuned baseline {name} that this is timed against is not kept here any more",
                    next_step="use the machine or the XDG_CACHE_HOME that it was tuned with, or start another run",
                )
            return kept
        try:
            return self.get(name, arguments)
        except BaselineError as error:
            instead = self.eager(arguments)
            return None if instead is None else replace(instead, instead=str(error))

    def _traced(self, name: str, arguments: Sequence[Mapping[str, Any]], tuned: Mapping[str, Any] | None) -> Base:
        """Traces a baseline, its workloads joined."""
        programs: list[Any] = []
        merged: dict[str, Any] = {}
        blobs: dict[str, bytes] = {}
        workloads = self._problem.timed
        with ThreadPoolExecutor(len(workloads)) as pool:
            ways = [None if tuned is None else tuned[w.name] for w in workloads]
            jobs = list(pool.map(self._trace, [name] * len(workloads), workloads, arguments, ways))
        for workload, job in zip(workloads, jobs, strict=True):
            if job.outcome != "ok" or job.value["status"] != "ok":
                raise BaselineError(f"{name} cannot be traced on {workload.name}: {_said(job)}")
            plan = job.value["plan"]
            merged = merged or plan
            if plan["flags"] != merged["flags"]:
                raise BaselineError(f"{name} changes PyTorch's settings from workload to workload")
            merged["kernels"] |= plan["kernels"]
            programs += plan["programs"]
            blobs |= job.blobs
        return Base(name, {**merged, "programs": programs}, blobs, tuned=tuned is not None)

    def _trace(self, name: str, workload: Workload, given: Mapping[str, Any], tuned: Any) -> JobResult:
        text, owner = source_of(self._problem, workload, name)
        payload = {
            "source": text, "filename": "baseline.py", "class": owner, "target": self._target, "workloads": [given],
            "tuned": tuned,
        }  # fmt: skip
        return self._run(TRACE_JOB if name == "eager" else BASELINE_JOB, payload)


def _said(job: JobResult) -> str:
    text = job.value["diagnostics"][0]["message"] if job.outcome == "ok" else job.error or job.outcome
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else job.outcome


def find_base(problem: Problem, name: str, target: str, *, tuned: bool) -> Base | None:
    """A kept plan, or None where there is none that today's reader takes."""
    path = _path(problem, name, target, tuned=tuned)
    try:
        with zipfile.ZipFile(path) as kept:
            files = {member: kept.read(member) for member in kept.namelist()}
            base = Base(name, json.loads(files.pop("plan.json")), files, tuned)
        read_plan(base.plan, base.blobs)
        return base
    except (OSError, KeyError, ValueError, PlanError, zipfile.BadZipFile):
        return None


def kept_tuned(problem: Problem, target: str) -> str | None:
    """Digest of the plan of the primary baseline that was tuned on a device; None where none is kept."""
    kept = find_base(problem, problem.baseline, target, tuned=True)
    return None if kept is None else kept.report.plan


def keep_base(base: Base, problem: Problem, target: str) -> None:
    """Keeps a plan for the next session; where nothing can be written, the next one makes it again."""
    path = _path(problem, base.name, target, tuned=base.tuned)
    made = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as kept:
            kept.writestr("plan.json", json.dumps(base.plan))
            for name, data in base.blobs.items():
                kept.writestr(name, data)
        made.replace(path)


def _path(problem: Problem, name: str, target: str, *, tuned: bool) -> Path:
    """Named by all that decides the plan."""
    versions = [version(package) for package in ("torch", "triton", "warpsmith")]
    decides = [_FORMAT, problem.id, name, target, tuned, versions]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "warpsmith" / "baselines" / f"{digest}.zip"
