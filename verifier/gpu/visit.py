"""What a supervisor asks of its judge, and what it gets back. Loads no torch."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from verifier.problem import Problem
from verifier.timing import RULES, Confirmation, Rules, WorkloadTiming
from verifier.verdict import Ceilings, Record, Status, StepTimes, TestReport

FILE_MARGIN = math.log(1.02)
"""Log ratio by which the time of a file may differ from that of its plan."""


class Request(Record):
    """One visit. The plans and their blobs travel beside it."""

    problem: Problem
    seed: int
    """Secret; weights follow from it, and with `salt` inputs and expected values. A judge keeps the last weights."""
    salt: str = ""
    """Another one for each visit gives each other inputs."""
    workloads: tuple[str, ...] = Field(min_length=1)
    """Checked, in this order; each a program of the plan."""
    draws: tuple[str, ...] | None = None
    """Input distributions, None for all of `inputs.DRAWS`."""
    repeats: int = Field(default=5, ge=1)
    """Runs of the first draw, which must agree bit by bit."""
    probe: bool = True
    """Look for the class of arithmetic with integers."""
    timed: tuple[str, ...] = ()
    """Workloads that are timed against the base where every check passed."""
    floor_seconds: dict[str, float] = Field(default_factory=dict)
    """Least honest time of the candidate by workload."""
    rules: Rules = RULES
    steps: bool = True
    """Time each step of what was timed."""
    confirmation: Confirmation | None = None
    """Confirm on fresh blocks after the decision, by these rules."""
    command_seconds: float = Field(default=10.0, gt=0)
    """Deadline of one command of the runner."""
    limit_seconds: float = Field(default=600.0, gt=0)
    """Of the whole visit; passing it is our fault."""


class Visit(Record):
    """What came of a visit. `status` is None where every check passed or none applied."""

    status: Status | None
    reason: str
    test: TestReport
    timings: tuple[WorkloadTiming, ...] = ()
    steps: tuple[StepTimes, ...] = ()
    """Of timed workloads; for advice alone: the runner says so, and nobody checks it."""
    ceilings: Ceilings | None = None
    """What the device reaches at best, where steps were timed."""
    runner_lost: bool = False
    """The runner was replaced."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall seconds: check, time."""
    parts: dict[str, float] = Field(default_factory=dict)
    """The same seconds by what was done in them, with commands of the runner."""


class FileTiming(Record):
    """Time of the candidate's file against that of its plan on one workload, by the judge's host clock, one call at a
    time in alternation; launch overhead is in both."""

    workload: str
    file_seconds: float = Field(gt=0)
    plan_seconds: float = Field(gt=0)
    """Medians over the blocks."""
    log_ratio: float
    """log(plan / file): above zero where the file is faster."""
    half_width: float = Field(ge=0)
    """Of the interval round `log_ratio`."""
    graphs: bool
    """Both ran as CUDA graphs; otherwise both ran eagerly, and the Python of the file is in its time."""

    @property
    def within(self) -> bool:
        """The file takes the time of its plan, within `FILE_MARGIN`."""
        return abs(self.log_ratio) <= FILE_MARGIN


class FileRun(Record):
    """How the candidate's own file behaves beside its plan, live, on the same fresh inputs."""

    outputs: Literal["bitwise", "yardstick", "different", "failed"]
    """`yardstick`: not bit by bit, and right by the rules of correctness. `different`: not right. `failed`: it gave
    none."""
    reason: str = ""
    """One sentence where it is `different` or `failed`, or has no times."""
    timings: tuple[FileTiming, ...] = ()
    seconds: float = Field(ge=0)

    @property
    def agrees(self) -> bool:
        """The file does what its plan does, in the same time. Otherwise the plan is what ships."""
        same = self.outputs in ("bitwise", "yardstick")
        return same and bool(self.timings) and all(t.within for t in self.timings)


class Fault(Record):
    """A visit that gave no result. `problem`: the user's file is at fault; `runner`: the runner was gone before the
    visit began; `ours`: the judge is at fault, and it ends."""

    kind: Literal["problem", "runner", "ours"]
    message: str
    line: int | None = None


def read_answer(header: dict[str, Any]) -> Visit | Fault:
    """The judge's answer to a request."""
    return Fault.model_validate(header["fault"]) if "fault" in header else Visit.model_validate(header["visit"])
