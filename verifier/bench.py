"""The judge as the agent sees it: three calls, cheapest first, and the verdict that joins their reports.

All calls block and are safe from several threads. A failing candidate is data: it sets `status`. What a call
raises is an InfrastructureError, never the candidate's fault.
"""

from __future__ import annotations

from typing import Protocol

from verifier.candidate import Candidate
from verifier.verdict import CompileReport, ProfileReport, Record, Status, TestReport, Verdict


class CompileStage(Record):
    """End of trace, compilation and audit."""

    report: CompileReport
    status: Status | None = None
    """None means go on to the test; otherwise the candidate's status is decided."""
    reason: str = ""
    """One sentence, set with `status`."""
    handle: str
    """Names what the bench keeps for `test` and `profile`; opaque, valid in this process only."""


class TestStage(Record):
    """End of the correctness test."""

    __test__ = False

    report: TestReport
    status: Status | None = None
    """None means go on to the profile; otherwise the candidate's status is decided."""
    reason: str = ""


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

    def verdict(
        self,
        candidate: Candidate,
        compile: CompileStage,
        test: TestStage | None,
        profile: ProfileReport | None,
    ) -> Verdict:
        """Joins the reports of the stages that ran."""
        ...
