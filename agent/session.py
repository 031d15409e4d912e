"""A session on a run: the journal locked and replayed, the ledger squared with what the gateway kept, the
graph ready.

Replay puts every recorded question to a fresh strategy and asserts that view and answer are the same
(asking.py). Reservations that a crash left open are closed by what is on disk: an answer that was stored is
settled, one that may be out at a server is charged at its reservation as lost, one that waits for a batch
stays held, one that never left is released.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.asking import Interview, ReplayError
from agent.budget import Ledger
from agent.checkpoints import checkpoints
from agent.context import PARTS, Context
from agent.graph import AttemptGraph, build
from agent.history import History
from agent.journal import Journal
from agent.judging import Judge
from agent.prompting import Prompts
from agent.run_folder import RunFolder
from strategies.base import Strategy
from tools.fleet.base import Fleet
from tools.metering import BudgetExhausted
from tools.models.base import Model
from tools.models.gateway import Gateway
from tools.models.store import CompletionStore
from verifier.errors import UsageError
from verifier.verdict import Verdict

OnEvent = Callable[[Mapping[str, Any]], None]
_SYNCED = frozenset({"begin", "reserve", "lost", "wait", "outcome", "measure", "anew", "stop"})
"""Events that wait for the disk, and with them all earlier ones: what was proposed before it is dispatched,
what was judged before it counts. A later event that is lost with the power is made again from these and from
the stored completions.
"""


@dataclass(frozen=True, slots=True)
class Deps:
    """What a run is given. Everything else comes from its folder."""

    strategy: Strategy
    """Fresh: its state is restored by replaying."""
    model: Model
    fleet: Fleet
    """Its CPU workers hold the `Bench` of the run's problem, its GPU workers the `Device`s."""
    devices: tuple[str, ...] = ()
    """Names of its GPUs."""
    models: Mapping[str, Model] = field(default_factory=dict)
    """Further models, by the name that a proposal may give."""
    prompts: Prompts = field(default_factory=Prompts)


@dataclass(frozen=True, slots=True)
class Session:
    """An open run."""

    folder: RunFolder
    deps: Deps
    journal: Journal
    history: History
    ledger: Ledger
    interview: Interview
    context: Context
    graph: AttemptGraph
    store: CompletionStore

    def record(self, event: dict[str, Any]) -> None:
        self.context.record(event)

    def thread(self, attempt: str) -> str:
        return f"{self.folder.manifest.run}/{attempt}"

    def write_best(self) -> Path | None:
        """Writes the best candidate and its verdict; None when nothing is correct, or nothing was confirmed."""
        best = self.history.best()
        turn = self.history.attempts[best.attempt].judged[-1] if best else None
        if turn is None or turn.source is None or turn.verdict is None:
            self.folder.clear_best()
            return None
        verdict = Verdict.model_validate_json(self.folder.blobs.get(turn.verdict))
        plan = self.folder.blobs.get(turn.plan) if turn.plan else None
        return self.folder.write_best(self.folder.blobs.text(turn.source), verdict, plan)

    def reconcile(self) -> None:
        """Closes reservations by what the gateway kept. Only while no attempt runs."""
        made = {dispatch.key: dispatch for dispatch in self.store.dispatches()}
        for key, dispatch in made.items():
            if dispatch.state in ("answered", "sent"):
                self.ledger.adopt(key, dispatch.bound)
            if dispatch.state == "answered" and dispatch.actual is not None:
                self.ledger.settle(key, dispatch.actual)
            if dispatch.state == "sent":
                self.ledger.lose(key, "in flight when the session ended")
                self.store.mark_lost(dispatch)
        for key in list(self.ledger.open):
            state = made[key].state if key in made else "never sent"
            if key.rpartition("/")[2] in PARTS:
                self.ledger.refund(key, "no verdict came of it in that session")
            elif state != "waiting":
                self.ledger.refund(key, "not dispatched" if state == "never sent" else state)


@asynccontextmanager
async def open_session(folder: RunFolder, deps: Deps, on_event: OnEvent) -> AsyncIterator[Session]:
    """Raises StorageError when another process has the run, ReplayError when the journal does not repeat."""
    with Journal(folder.journal) as journal:
        history, clock = History(measured=folder.manifest.measured), Clock()
        ledger = Ledger(folder.manifest.budget, record=_recorder(journal, history, clock, on_event), clock=clock)
        interview = Interview(
            deps.strategy,
            name=folder.manifest.strategy,
            seed=folder.manifest.seed,
            width=folder.manifest.width,
            models=frozenset(deps.models),
        )
        replay(journal.events, history, ledger, interview)
        if history.measured and not deps.fleet.gpus:
            raise no_gpu()
        clock.start(history.wall)
        with checkpoints(folder.checkpoint) as checkpointer:
            store = CompletionStore(folder.path)
            context = Context(
                folder=folder,
                history=history,
                ledger=ledger,
                judge=Judge(deps.fleet, history),
                prompts=deps.prompts,
                gateways={name: Gateway(m, ledger, store) for name, m in {"": deps.model, **deps.models}.items()},
                record=_recorder(journal, history, clock, on_event),
                progress=lambda attempt, stage: on_event({"t": "stage", "attempt": attempt, "stage": stage}),
            )
            session = Session(
                folder,
                deps,
                journal,
                history,
                ledger,
                interview,
                context,
                build(checkpointer),
                store,
            )
            where = {"fleet": deps.fleet.name, "devices": list(deps.devices)}
            session.record({"t": "begin", "versions": folder.manifest.versions, **where})
            session.reconcile()
            if deps.fleet.gpus and not history.measured:
                session.record({"t": "measure", "device": ", ".join(dict.fromkeys(deps.devices)) or "a GPU"})
            yield session


def no_gpu() -> UsageError:
    """The refusal of a measured run without a GPU."""
    return UsageError(
        "this run measures on a GPU, and none is chosen here",
        next_step="resume it where a GPU is, or start another run with --gpus none",
    )


class Clock:
    """Wall seconds of a run over all its sessions. Stands still until `start`."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started: float | None = None

    def start(self, before: float) -> None:
        self._before, self._started = before, time.monotonic()

    def __call__(self) -> float:
        return self._before + (time.monotonic() - self._started if self._started is not None else 0.0)


def replay(events: list[dict[str, Any]], history: History, ledger: Ledger, interview: Interview) -> None:
    """Rebuilds the state from the journal. Raises ReplayError."""
    for event in events:
        if event["t"] == "ask":
            interview.replay(event, history, ledger)
        try:
            ledger.apply(event)
            history.apply(event)
        except (KeyError, IndexError, ValueError, BudgetExhausted) as error:
            raise ReplayError(f"journal line {event['seq'] + 1} does not follow: {error!r}") from error
        if event["t"] == "outcome":
            interview.strategy.observe(history.archive[-1])
        if event["t"] == "anew":
            observe_anew(history, event["candidate"], interview.strategy)


def observe_anew(history: History, candidate: str, strategy: Strategy) -> None:
    """Shows a strategy the outcomes that a new verdict changed."""
    for attempt in history.attempts.values():
        if attempt.outcome is not None and any(t.anew and t.candidate == candidate for t in attempt.turns):
            strategy.observe(attempt.outcome)


def _recorder(journal: Journal, history: History, clock: Clock, on_event: OnEvent) -> Callable[[dict[str, Any]], None]:
    def record(event: dict[str, Any]) -> None:
        hold = event["t"] == "reserve" and "@" not in event["key"]
        full = journal.append(event, wall=clock(), sync=event["t"] in _SYNCED and not hold)
        history.apply(full)
        on_event(full)

    return record
