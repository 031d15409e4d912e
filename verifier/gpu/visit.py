"""What a supervisor asks of its judge, and what it gets back. Loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from verifier.problem import Problem
from verifier.timing import RULES, Confirmation, Rules, WorkloadTiming
from verifier.verdict import Ceilings, FileRun, Record, Status, StepTimes, TestReport


class Request(Record):
    """One visit. The plans and their blobs travel beside it."""

    path: Literal["plan", "live", "file"] = "plan"
    """Replay the plan; run the candidate's own Python; run that beside its plan (the answer is a `FileRun`)."""
    problem: Problem
    seed: int
    """Secret; weights follow from it, and with `salt` inputs and expected values. A judge keeps the last weights."""
    salt: str = ""
    """Another one for each visit gives each other inputs."""
    workloads: tuple[str, ...] = Field(min_length=1)
    """Checked, in this order; each a program of the plan."""
    later: tuple[str, ...] = ()
    """Of them, those left to the confirmation. Where nothing came to be timed, and so none follows, they are checked
    too."""
    draws: tuple[str, ...] | None = None
    """Input distributions, None for all of `inputs.DRAWS`."""
    repeats: int = Field(default=5, ge=1)
    """Runs of the first draw, which must agree bit by bit."""
    probe: bool = True
    """Look for the class of arithmetic with integers."""
    held: dict[str, tuple[int, ...]] | None = None
    """Shapes of the file's weights by name: those that start with one value everywhere are tried with others. None:
    they are not."""
    timed: tuple[str, ...] = ()
    """Workloads that are timed against the base where every check passed."""
    base: str = "eager"
    """Name of the base."""
    floor_seconds: dict[str, float] = Field(default_factory=dict)
    """Least honest time of the candidate by workload."""
    rules: Rules = RULES
    steps: bool = True
    """Time each step of what was timed."""
    choices: dict[str, dict[int, int]] = Field(default_factory=dict)
    """Of a file's plan: workload to forward step to alternative."""
    confirmation: Confirmation | None = None
    """Confirm on fresh blocks after the decision, by these rules."""
    command_seconds: float = Field(default=10.0, gt=0)
    """Deadline of one command of the runner."""
    disturbance: float = Field(default=1.05, gt=1)
    """Live: time of the base beside the candidate over its time alone, and of the judge's own work right before the
    candidate's calls over that before the base's, above which there are no times."""
    build_seconds: float = Field(default=40.0, gt=0)
    """Deadline of what may build or compile, live: loading the file, a set-up, the first run after one."""
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
    full: bool = False
    """Memory was lacking somewhere, and nothing else is wrong."""
    isolation: tuple[str, ...] = ()
    """What confinement lacked for the candidate's own process, where that ran."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall seconds: check, time."""
    parts: dict[str, float] = Field(default_factory=dict)
    """The same seconds by what was done in them, with commands of the runner."""


class Fault(Record):
    """A visit that gave no result. `problem`: the user's file is at fault; `runner`: the runner was gone before the
    visit began; `ours`: the judge is at fault, and it ends."""

    kind: Literal["problem", "runner", "ours"]
    message: str
    line: int | None = None


def read_answer(header: dict[str, Any]) -> Visit | FileRun | Fault:
    """The judge's answer to a request."""
    if "file" in header:
        return FileRun.model_validate(header["file"])
    return Fault.model_validate(header["fault"]) if "fault" in header else Visit.model_validate(header["visit"])
