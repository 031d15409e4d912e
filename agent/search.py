"""The loop: reserve, propose, dispatch, observe, at a steady width. Nothing waits for a slow neighbour.

A run ends when the strategy is done, the budget is, a stop was asked for, an actual exceeded its reservation,
every attempt in flight waits for a batch answer, or our own machinery failed three times on one attempt. Each
end leaves a run that `search` can go on with. The wall budget is a promise: at its end attempts in flight are
cut; at the other ends they are drained.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langgraph.types import Command
from langsmith.run_helpers import tracing_context

from agent.anew import hold, judge_anew
from agent.asking import StrategyError
from agent.budget import refuse_endless
from agent.graph import recursion_limit
from agent.history import INIT, Attempt, outcome_event
from agent.run_folder import RunFolder
from agent.session import Deps, OnEvent, Session, observe_anew, open_session
from agent.state import AttemptState, initial
from agent.stop import Stop
from agent.turns import open_turn
from strategies.base import Outcome
from tools.metering import BudgetExhausted, Charge
from tools.models import charging
from verifier.bench import CONFIRM_SECONDS, VISIT_SECONDS
from verifier.candidate import Candidate
from verifier.errors import InfrastructureError, StorageError, WarpsmithError

RERUNS = 2
"""Times that an attempt is run again after an infrastructure fault, in one session."""


class Reason(StrEnum):
    """Why a session ended."""

    STRATEGY = "strategy"
    BUDGET = "budget"
    INTERRUPTED = "interrupted"
    EXCESS = "excess"
    WAITING = "waiting"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Summary:
    """How a session ended. Charges are of the whole run."""

    folder: Path
    reason: Reason
    detail: str
    """The strategy's reason, the budget's axis, the excess: one sentence or a word."""
    best: Outcome | None
    best_file: Path | None
    ended: int
    """Attempts that ended, over all sessions."""
    waiting: tuple[str, ...]
    """Requests that wait for an answer."""
    spent: Charge
    reserved: Charge
    remaining: dict[str, float]
    measured: bool = False
    """Scores are measured on a GPU, not estimated."""
    anew: int = 0
    """Verdicts of candidates that the run kept before it had a GPU, over all sessions."""
    device: str = ""
    """Where they were judged anew."""


async def search(
    folder: RunFolder, deps: Deps, on_event: OnEvent = lambda event: None, *, stop: Stop | None = None
) -> Summary:
    """Starts the run of the folder or goes on with it. SIGINT asks for a stop, a second one cancels.

    `on_event` sees every journal event, and `{"t": "stage"}` when an attempt enters a node. Raises
    WarpsmithError.
    """
    stop = stop or Stop()
    prices = [m.profile.prices for m in (deps.model, *deps.models.values())]
    refuse_endless(folder.manifest.budget, prices, measured=deps.fleet.gpus > 0)
    async with open_session(folder, deps, on_event) as session:
        with stop.on_interrupt(), tracing_context(enabled=False):
            return await _Search(session, stop).run()


class _Search:
    def __init__(self, session: Session, stop: Stop) -> None:
        self.session = session
        self.stop = stop
        self.history = session.history
        self.queue = deque(session.history.in_flight())
        self.resumed = {attempt.id for attempt in self.queue}
        self.running: dict[asyncio.Task[str | None], Attempt] = {}
        self.renewing: dict[asyncio.Task[Any], str] = {}
        """Those of `running` that judge a candidate anew."""
        self.controls: dict[str, RunControl] = {}
        self.parked: list[Attempt] = []
        self.faults: Counter[str] = Counter()
        self.end: tuple[Reason, str] | None = None
        self.blocked = ""
        self.error: WarpsmithError | None = None

    async def run(self) -> Summary:
        try:
            self.give_first_candidate()
            while True:
                self.fill()
                if not self.running:
                    break
                for task in await self.finished():
                    self.observe(task)
            return self.finish(*self.why())
        except BaseException as error:
            await self.abandon(error)
            raise

    def fill(self) -> None:
        """Checks for an end, dispatches what was proposed, then asks the strategy for what still fits. Where an
        estimated run has a GPU now, nothing begins before all that it kept was judged anew.
        """
        self.check()
        self.blocked = ""
        if any(self.history.pending()):
            return self.renew()
        if self.end is None or self.end[0] is Reason.STRATEGY:
            self.dispatch()
        judging_init = INIT in self.history.attempts and self.history.attempts[INIT].outcome is None
        if self.end is None and not self.queue and not judging_init and (n := self.affordable()):
            event = self.session.interview.ask(self.history, self.session.ledger.remaining(), n)
            self.session.record(event)
            self.queue.extend(self.history.attempts[made["attempt"]] for made in event["proposals"])
            if event["done"]:
                self.end = (Reason.STRATEGY, event["done"])
            self.dispatch()

    def dispatch(self) -> None:
        """Starts queued attempts, in order, while there is a free slot and the reservation of their first
        call fits.
        """
        while self.queue and self.free() > 0:
            attempt = self.queue[0]
            try:
                if attempt.turns and attempt.turns[-1].status is None:
                    self.session.context.hold_gpu(attempt.turns[-1].request)
                if attempt.id != INIT and len(attempt.turns) <= 1 and not attempt.judged:
                    open_turn(self.session.context, attempt, 1)
            except BudgetExhausted as error:
                self.blocked = error.axis
                return
            self.queue.popleft()
            self.running[asyncio.create_task(self.attempt(attempt), name=attempt.id)] = attempt

    def renew(self) -> None:
        """Starts what waits to be judged anew, while there is a free slot and its reservation fits."""
        for attempt, number, turn in self.history.pending():
            if self.end is not None or self.free() <= 0:
                return
            if turn.candidate in self.renewing.values():
                continue
            try:
                hold(self.session.context, attempt, number)
            except BudgetExhausted as error:
                self.blocked = error.axis
                return
            task = asyncio.create_task(judge_anew(self.session.context, attempt, number), name=f"{attempt.id} anew")
            self.running[task], self.renewing[task] = attempt, turn.candidate or ""

    def affordable(self) -> int:
        """How many smallest calls fit beside what is spent and reserved, at most the free slots."""
        deps, manifest = self.session.deps, self.session.folder.manifest
        measured = self.session.context.judge.measures
        output = min(manifest.sampling.max_tokens, deps.model.profile.max_tokens)
        usage = Charge().usage.model_copy(update={"output": output})
        one = charging.actual(deps.model.profile, usage)
        axis: str | None = None
        for n in range(self.free(), 0, -1):
            many = Charge(
                calls=n,
                usage=usage.model_copy(update={"output": n * output}),
                dollars=n * one.dollars,
                gpu_seconds=n * (VISIT_SECONDS + CONFIRM_SECONDS) if measured else 0.0,
            )
            axis = self.session.ledger.short_axis(many)
            if axis is None:
                return n
        self.blocked = axis or ""
        return 0

    def free(self) -> int:
        return self.session.folder.manifest.width - len(self.running) - len(self.parked)

    async def attempt(self, attempt: Attempt) -> str | None:
        """One graph run. Its note when the attempt ended, None when it waits for an answer."""
        control = self.controls[attempt.id] = RunControl()
        turns = self.session.folder.manifest.max_repairs + 1
        config: RunnableConfig = {
            "configurable": {"thread_id": self.session.thread(attempt.id)},
            "recursion_limit": recursion_limit(turns),
        }
        try:
            result = await self.session.graph.ainvoke(
                await self.entry(attempt, config, turns),
                config,
                context=self.session.context,
                durability="async",
                control=control,
            )
        except sqlite3.Error as error:
            raise StorageError(
                f"{self.session.folder.checkpoint} cannot be used: {error}",
                next_step="free space, or delete it, then resume",
            ) from error
        finally:
            self.session.context.judge.release(attempt.id)
        return None if "__interrupt__" in result else str(result["note"])

    async def entry(self, attempt: Attempt, config: RunnableConfig, turns: int) -> AttemptState | Command[Any] | None:
        """Where to go on: from the checkpoint when it agrees with the journal, else from the start."""
        start = initial(attempt.id, turns=turns, candidate=attempt.turns[0].candidate if attempt.id == INIT else None)
        if attempt.id not in self.resumed:
            return start
        snapshot = await self.session.graph.aget_state(config)
        if not snapshot.values or not snapshot.next or not _agrees(snapshot.values, attempt):
            return start
        return Command(resume=True) if snapshot.interrupts else None

    async def finished(self) -> list[asyncio.Task[str | None]]:
        """Waits for attempts, a stop or the end of the wall budget. Ended tasks in the order of their
        attempts.
        """
        cap = self.session.folder.manifest.budget.wall_seconds
        left = None if cap is None else max(0.0, cap - self.session.ledger.totals()["wall_seconds"]) + 0.001
        stopping = asyncio.create_task(self.stop.wait())
        try:
            done, _ = await asyncio.wait({stopping, *self.running}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        return sorted((task for task in self.running if task in done), key=lambda task: self.running[task].id)

    def observe(self, task: asyncio.Task[str | None]) -> None:
        """Takes the end of one graph run; the strategy sees an outcome, never a fault of ours."""
        attempt, renewed = self.running.pop(task), self.renewing.pop(task, None)
        if renewed is None:
            self.resumed.add(attempt.id)
        try:
            note = task.result()
        except BudgetExhausted:
            self.queue.appendleft(attempt)
        except (GraphDrained, asyncio.CancelledError):
            pass
        except InfrastructureError as error:
            self.fault(attempt, error)
            if renewed is None and self.error is None:
                self.queue.appendleft(attempt)
        else:
            if renewed is not None:
                observe_anew(self.history, renewed, self.session.deps.strategy)
                self.session.write_best()
            elif note is None:
                self.parked.append(attempt)
            else:
                self.conclude(attempt, note)

    def conclude(self, attempt: Attempt, note: str) -> None:
        """Records the outcome, then shows it to the strategy."""
        for turn in range(1, len(attempt.turns) + 2):
            self.session.context.free_gpu(f"{attempt.id}/{turn}")  # of a repair that did not begin
        self.session.record(outcome_event(attempt, note))
        outcome = self.history.archive[-1]
        self.session.deps.strategy.observe(outcome)
        if outcome is self.history.best():
            self.session.write_best()

    def fault(self, attempt: Attempt, error: InfrastructureError) -> None:
        """Notes a fault after which the attempt is run again, or ends the session with the error."""
        self.faults[attempt.id] += 1
        if isinstance(error, StorageError) or self.faults[attempt.id] > RERUNS:
            self.error = self.error or error
            return
        self.session.record({"t": "infra", "attempt": attempt.id, "error": str(error)})

    def check(self) -> None:
        """Sets the end of the session, and drains or cuts what runs."""
        ledger = self.session.ledger
        if self.error is not None:
            self.end = (Reason.ERROR, str(self.error))
        elif self.stop.drain:
            self.end = (Reason.INTERRUPTED, "stopped on request")
        elif ledger.excess:
            self.end = (Reason.EXCESS, ledger.excess[0])
        if ledger.short_axis(Charge()) == "wall_seconds":
            self.end = self.end if self.end and self.end[0] is Reason.ERROR else (Reason.BUDGET, "wall_seconds")
            self.cancel()
        elif self.stop.cancel:
            self.cancel()
        elif self.end and self.end[0] is not Reason.STRATEGY:
            for control in self.controls.values():
                control.request_drain()

    def cancel(self) -> None:
        for task in self.running:
            task.cancel()

    def why(self) -> tuple[Reason, str]:
        """The reason of a session in which nothing runs any more. Raises StrategyError for a stall."""
        if self.end is not None and self.end[0] is not Reason.STRATEGY:
            return self.end
        if self.parked:
            return Reason.WAITING, f"{len(self.parked)} requests wait for an answer"
        if self.blocked:
            return Reason.BUDGET, self.blocked
        if self.end is not None:
            return self.end
        raise StrategyError(
            f"strategy {self.session.interview.name} stalled: it proposes nothing, nothing is in flight "
            "and budget is left",
            next_step="report it to the strategy's author, or choose another --strategy",
        )

    def finish(self, reason: Reason, detail: str) -> Summary:
        self.session.reconcile()
        self.session.record({"t": "stop", "reason": reason.value, "detail": detail})
        if self.error is not None:
            raise self.error
        ledger = self.session.ledger
        return Summary(
            folder=self.session.folder.path,
            reason=reason,
            detail=detail,
            best=self.history.best(),
            best_file=self.session.write_best(),
            ended=len(self.history.archive),
            waiting=tuple(a.turns[-1].request for a in self.parked),
            spent=ledger.spent,
            reserved=ledger.reserved,
            remaining=ledger.remaining(),
            measured=self.history.measured,
            anew=self.history.renewed,
            device=self.history.device,
        )

    async def abandon(self, error: BaseException) -> None:
        """Leaves a resumable run behind an exception: no task runs on, the journal says why if it can."""
        self.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        if self.error is error:
            return
        with suppress(StorageError):
            self.session.reconcile()
            self.session.record(
                {"t": "stop", "reason": Reason.ERROR.value, "detail": str(error) or type(error).__name__}
            )

    def give_first_candidate(self) -> None:
        """Queues the candidate that the run was given, before anything is asked."""
        given = self.session.folder.manifest.init
        if given is not None and INIT not in self.history.attempts:
            source = self.session.folder.blobs.text(given)
            self.session.record({"t": "init", "source": given, "candidate": Candidate(source=source).id})
            self.queue.appendleft(self.history.attempts[INIT])


def _agrees(values: dict[str, Any], attempt: Attempt) -> bool:
    """Whether the journal holds everything that the checkpoint builds on."""
    turn: int = values["turn"]
    started = len(attempt.turns) >= turn and all(t.completion or attempt.id == INIT for t in attempt.turns[:turn])
    return started and len(attempt.judged) >= turn - 1
