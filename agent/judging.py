"""The bench behind the fleet: each stage of a candidate runs once, on a leased worker, any of them.

Where the fleet has GPUs, what passes the interpreter, or cannot run there, is judged on a leased GPU, and a new best is
confirmed and examined there. Each call is a lease of its own; its seconds are the attempt's until they are taken.

Stages live in this process only. A node that is resumed in another process asks for the stage it needs, and
the earlier ones are run again; nothing of the bench goes through a checkpoint. An attempt claims its
candidate, so that of two attempts with the same source at the same time the second waits for the verdict of
the first.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.history import History
from tools.fleet.base import Fleet
from verifier.bench import CompileStage, TestStage
from verifier.candidate import Candidate
from verifier.verdict import Diagnostic, ProfileReport, Verdict


@dataclass(slots=True)
class _Stages:
    owner: str
    released: asyncio.Event = field(default_factory=asyncio.Event)
    compile: CompileStage | None = None
    test: TestStage | None = None
    profile: ProfileReport | None = None
    weighed: bool = False
    """Whether it would be the best was asked, and what follows was done."""


class Judge:
    """Runs the stages of the candidates of one run. Raises InfrastructureError where the bench or the fleet
    does.
    """

    def __init__(self, fleet: Fleet, history: History) -> None:
        self._fleet = fleet
        self._history = history
        self._stages: dict[str, _Stages] = {}
        self._seconds: defaultdict[str, dict[str, float]] = defaultdict(dict)

    @property
    def measures(self) -> bool:
        return self._fleet.gpus > 0

    async def claim(self, candidate: str, attempt: str) -> str | None:
        """The attempt that judged this candidate before, or None when `attempt` is to judge it now."""
        while True:
            if candidate in self._history.judged:
                return self._history.judged[candidate][0]
            stages = self._stages.get(candidate)
            if stages is None or stages.owner == attempt:
                self._stages.setdefault(candidate, _Stages(attempt))
                return None
            await stages.released.wait()

    def take_seconds(self, attempt: str) -> dict[str, float]:
        """Leased GPU seconds of an attempt by call, since they were taken last. A call that failed through our fault
        costs nothing.
        """
        return {call: round(seconds, 6) for call, seconds in self._seconds.pop(attempt, {}).items()}

    def release(self, attempt: str) -> None:
        """Drops the stages that `attempt` holds, with the seconds that nobody took, and lets who waits for them go
        on.
        """
        self._seconds.pop(attempt, None)
        for candidate, stages in list(self._stages.items()):
            if stages.owner == attempt:
                del self._stages[candidate]
                stages.released.set()

    async def compile(self, candidate: Candidate, attempt: str) -> CompileStage:
        return await self._compiled(candidate, self._of(candidate, attempt))

    async def test(self, candidate: Candidate, attempt: str) -> TestStage | None:
        """None when the compile stage decided."""
        return await self._tested(candidate, self._of(candidate, attempt))

    async def profile(self, candidate: Candidate, attempt: str) -> ProfileReport | None:
        """None when an earlier stage decided."""
        return await self._profiled(candidate, self._of(candidate, attempt))

    async def look(self, call: str, candidate: Candidate, attempt: str, still: Callable[[], bool]) -> bool:
        """One more call of a `Device` for one that was timed: `confirm`, `compare_file` or `examine`. Its answer takes
        the place of the test. False where `still` says, when a GPU is free, that it is not wanted any more.
        """
        stages = self._of(candidate, attempt)
        compiled, test = await self._compiled(candidate, stages), await self._tested(candidate, stages)
        found = await self._on_gpu(call, compiled, test, stages.owner, still) if test and test.status is None else None
        if found is not None:
            stages.test, stages.profile = found, None
        return found is not None

    async def remark(self, candidate: Candidate, attempt: str, said: Diagnostic) -> None:
        """Puts why there was no closer look beside what one would have said."""
        stages = self._of(candidate, attempt)
        test = await self._tested(candidate, stages)
        if test is not None:
            stages.test, stages.profile = test.model_copy(update={"examined": (*test.examined, said)}), None

    async def plan(self, candidate: Candidate, attempt: str) -> bytes:
        """The packed plan of one that was tested."""
        stages = self._of(candidate, attempt)
        compiled, test = await self._compiled(candidate, stages), await self._tested(candidate, stages)
        packed: bytes = await self._run("pack", compiled, test)
        return packed

    def first_weighing(self, candidate: Candidate, attempt: str) -> bool:
        """True once for the stages that `attempt` holds: whether it would be the best is to be asked now."""
        stages = self._of(candidate, attempt)
        first, stages.weighed = not stages.weighed, True
        return first

    async def verdict(self, candidate: Candidate, attempt: str) -> Verdict:
        """Joins the reports of the stages that apply, running those that did not run in this process."""
        stages = self._of(candidate, attempt)
        profile = await self._profiled(candidate, stages)
        compiled = await self._compiled(candidate, stages)
        reports = compiled.model_copy(update={"handle": None})
        verdict: Verdict = await self._run("verdict", candidate, reports, stages.test, profile)
        return verdict

    def _of(self, candidate: Candidate, attempt: str) -> _Stages:
        return self._stages.setdefault(candidate.id, _Stages(attempt))

    async def _compiled(self, candidate: Candidate, stages: _Stages) -> CompileStage:
        if stages.compile is None:
            stages.compile = await self._run("compile", candidate)
        return stages.compile

    async def _tested(self, candidate: Candidate, stages: _Stages) -> TestStage | None:
        compiled = await self._compiled(candidate, stages)
        if compiled.status is None and stages.test is None:
            test: TestStage = await self._run("test", compiled)
            visits = self.measures and test.undecided
            found = await self._on_gpu("visit", compiled, test, stages.owner, lambda: True) if visits else None
            stages.test = found or test
        return stages.test

    async def _on_gpu(
        self, call: str, compiled: CompileStage, test: TestStage, attempt: str, still: Callable[[], bool]
    ) -> TestStage | None:
        async with self._fleet.gpu() as device:
            if not still():
                return None
            found: TestStage = await device.run(call, compiled, test)
        spent, part = self._seconds[attempt], call.removeprefix("compare_")
        spent[part] = spent.get(part, 0.0) + device.held
        return found

    async def _profiled(self, candidate: Candidate, stages: _Stages) -> ProfileReport | None:
        compiled, tested = await self._compiled(candidate, stages), await self._tested(candidate, stages)
        if tested is not None and tested.status is None and stages.profile is None:
            stages.profile = await self._run("profile", compiled, tested)
        return stages.profile

    async def _run(self, call: str, *args: Any) -> Any:
        """One call of the `Bench` that lives on whichever CPU worker is free first."""
        async with self._fleet.cpu() as worker:
            return await worker.run(call, *args)
