"""The judge as the agent sees it: three calls, cheapest first, and the verdict that joins their reports. A `Device`
looks on in between, up to four times.

All calls block and are safe from several threads. A failing candidate is data: it sets `status`. What a call
raises is an InfrastructureError, never the candidate's fault. Benches made alike are alike: each may go on with a
stage of another.
"""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import Field

from verifier.candidate import Candidate
from verifier.timing import WorkloadTiming
from verifier.verdict import (
    Ceilings,
    CompileReport,
    Diagnostic,
    FileRun,
    ProfileReport,
    Record,
    Status,
    StepTimes,
    TestReport,
    Verdict,
)

VISIT_SECONDS = 60.0
CONFIRM_SECONDS = 60.0
FILE_SECONDS = 60.0
EXAMINE_SECONDS = 45.0
"""The most that each call of a `Device` may take; what a search reserves for it."""


class CompileStage(Record):
    """End of trace, compilation and audit."""

    report: CompileReport
    status: Status | None = None
    """None means go on to the test; otherwise the candidate's status is decided."""
    reason: str = ""
    """One sentence, set with `status`."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Step to its time."""
    handle: Any = None
    """What `test` and `profile` need of the candidate: opaque, pickled where it goes to another process. A fleet may
    put a reference in its place.
    """


class TestStage(Record):
    """End of the correctness test."""

    __test__ = False

    report: TestReport
    timings: tuple[WorkloadTiming, ...] = ()
    """Of the same visit to the GPU."""
    steps: tuple[StepTimes, ...] = ()
    isolation: tuple[str, ...] = ()
    """What confinement lacked for a process of the candidate on the GPU, where one ran."""
    ceilings: Ceilings | None = None
    """Both of that visit, for the measured profile."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Step to its time."""
    parts: dict[str, float] = Field(default_factory=dict)
    """Seconds of the visit to the GPU by what was done in them."""
    status: Status | None = None
    """None means go on to the profile; otherwise the candidate's status is decided."""
    reason: str = ""
    confirmation: bool = False
    """A second visit found all this, in a fresh runner on other inputs."""
    file: FileRun | None = None
    """The candidate's own file beside its plan, where it ran."""
    examined: tuple[Diagnostic, ...] = ()
    """What hardware counters and the sanitizer say, ranked; and why a tool said nothing."""

    @property
    def undecided(self) -> bool:
        """Whether a GPU has still to judge: it passed, or the interpreter could not run it, or nothing traces it."""
        return self.report.basis == "interpreter" and self.status in (None, Status.UNTESTED, Status.UNTRACEABLE)


class Bench(Protocol):
    """Judges candidates of one problem on one target."""

    def compile(self, candidate: Candidate) -> CompileStage:
        """Traces, compiles and audits the candidate."""
        ...

    def test(self, stage: CompileStage) -> TestStage:
        """Correctness of a candidate that compiled."""
        ...

    def profile(self, stage: CompileStage, test: TestStage) -> ProfileReport:
        """Speed of a candidate that passed its test."""
        ...

    def pack(self, stage: CompileStage, test: TestStage) -> bytes:
        """The plan of a candidate and what replays it, as `gpu.replay_folder.pack_folder` makes it."""
        ...

    def verdict(
        self,
        candidate: Candidate,
        compile: CompileStage,
        test: TestStage | None,
        profile: ProfileReport | None,
    ) -> Verdict:
        """Joins the reports of the stages that ran. Needs no handle."""
        ...


class Device(Protocol):
    """The calls of one GPU. Each gives `test` as the GPU found it; an objection sets `status`. Raises
    InfrastructureError and ProblemError.
    """

    def visit(self, stage: CompileStage, test: TestStage) -> TestStage:
        """Correctness, and times of the timed workloads up to a decision. For what is `undecided`."""
        ...

    def confirm(self, stage: CompileStage, test: TestStage) -> TestStage:
        """For one that a visit found correct and timed: all of it again with a new seed in a fresh runner, and times
        on fresh blocks with a fixed precision. Where that is not possible, a finding `not-confirmed` says why.
        """
        ...

    def compare_file(self, stage: CompileStage, test: TestStage) -> TestStage:
        """For one that was timed by its plan: the candidate's own file beside that plan. It sets `file` and never
        `status`: where the two differ, the plan is what was judged and what ships. Where the file cannot be run, a
        finding `file-not-run` says why.
        """
        ...

    def examine(self, stage: CompileStage, test: TestStage) -> TestStage:
        """For one that was timed: hardware counters and sanitizer over a replay. A tool that is missing or refused
        costs a sentence.
        """
        ...
