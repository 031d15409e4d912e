"""The bench behind the fleet: each stage of a candidate runs once, on a leased worker, any of them.

Where the fleet has GPUs, what passes the interpreter, or cannot run there, is judged on a leased GPU; the lease's
seconds are the attempt's until it ends.

Stages live in this process only. A node that is resumed in another process asks for the stage it needs, and
the earlier ones are run again; nothing of the bench goes through a checkpoint. An attempt claims its
candidate, so that of two attempts with the same source at the same time the second waits for the verdict of
the first.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from agent.history import History
from tools.fleet.base import Fleet
from verifier.bench import CompileStage, TestStage
from verifier.candidate import Candidate
from verifier.verdict import ProfileReport, Verdict


@dataclass(slots=True)
class _Stages:
    owner: str
    released: asyncio.Event = field(default_factory=asyncio.Event)
    compile: CompileStage | None = None
    test: TestStage | None = None
    profile: ProfileReport | None = None


class Judge:
    """Runs the stages of the candidates of one run. Raises InfrastructureError where the bench or the fleet
    does.
    """

    def __init__(self, fleet: Fleet, history: History) -> None:
        self._fleet = fleet
        self._history = history
        self._stages: dict[str, _Stages] = {}
        self._gpu_seconds: defaultdict[str, float] = defaultdict(float)

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

    def gpu_seconds(self, attempt: str) -> float:
        """Leased GPU seconds of an attempt in this session, each told once."""
        return self._gpu_seconds.pop(attempt, 0.0)

    def release(self, attempt: str) -> None:
        """Drops the stages that `attempt` holds and lets who waits for them go on."""
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
            stages.test = await self._visited(compiled, test, stages.owner) if self._fleet.gpus else test
        return stages.test

    async def _visited(self, compiled: CompileStage, test: TestStage, attempt: str) -> TestStage:
        """The stage as a GPU decided it. A visit that failed through our fault costs the attempt nothing."""
        if not test.undecided:
            return test
        async with self._fleet.gpu() as device:
            visited: TestStage = await device.run("visit", compiled, test)
        self._gpu_seconds[attempt] += device.held
        return visited

    async def _profiled(self, candidate: Candidate, stages: _Stages) -> ProfileReport | None:
        compiled, tested = await self._compiled(candidate, stages), await self._tested(candidate, stages)
        if tested is not None and tested.status is None and stages.profile is None:
            stages.profile = await self._run("profile", compiled, tested)
        return stages.profile

    async def _run(self, call: str, *args: Any) -> Any:
        """One call of the `Bench` that lives on whichever CPU worker is free first."""
        async with self._fleet.cpu() as worker:
            return await worker.run(call, *args)
