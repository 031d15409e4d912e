"""Reads a run for people: the command line, the report, a comparison. Never writes, needs no lock, takes an
unfinished run as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from agent import history as fold
from agent.budget import Entry, Ledger, add
from agent.context import PARTS
from agent.history import INIT, History
from agent.journal import read_events
from agent.run_folder import Manifest, RunFolder
from tools.metering import Charge
from tools.models.base import Completion, ModelRequest
from verifier.errors import StorageError
from verifier.verdict import Status, Verdict


@dataclass(frozen=True, slots=True)
class Turn:
    """One model call, or the given candidate (`messages` is None)."""

    request: str
    messages: str | None
    """Blob of the `ModelRequest`."""
    completion: str | None
    """Blob of the `Completion`, None while there is none."""
    candidate: str | None
    """None when the reply held no candidate, or while there is no reply."""
    source: str | None
    """Blob of the candidate's source."""
    verdict: Verdict | None
    """None until judged. That of an unparsable reply has an empty candidate."""
    feedback: str
    charge: Charge
    """What it cost, lost dispatches and leased GPU seconds included; nothing while it is in flight."""
    gpu: Mapping[str, float] = field(default_factory=dict)
    """Leased GPU seconds of its verdict by call: visit, confirm, file, examine."""
    anew: bool = False
    """Its verdict is one anew: the run was begun without a GPU."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that was dispatched."""

    id: str
    operator: str
    parents: tuple[str, ...]
    context: tuple[str, ...]
    turns: tuple[Turn, ...]
    state: Literal["done", "waiting", "in_flight"]
    status: Status | None
    """None until it has ended."""
    score: float | None
    confirmed: bool
    """The score is that of a second visit to the GPU."""
    duplicate_of: str | None
    """Attempt that had the same source before."""
    note: str
    """Why it ended before its repairs were used, or empty."""
    order: int | None
    """Position in the archive, from 0."""
    spent: Charge | None
    """Spent by the whole run when this attempt ended."""
    wall_seconds: float | None
    """Wall seconds of the run when this attempt ended."""

    @property
    def live(self) -> bool:
        """Its numbers are of its own file, run live."""
        judged = next((turn.verdict for turn in reversed(self.turns) if turn.verdict is not None), None)
        return judged is not None and judged.path == "live"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as its folder tells it."""

    folder: RunFolder
    manifest: Manifest
    attempts: tuple[Attempt, ...]
    spent: Charge
    reserved: Charge
    refunds: tuple[Entry, ...]
    lost: tuple[Entry, ...]
    """Dispatches whose answer never arrived, charged at their reservation."""
    excess: tuple[str, ...]
    remaining: dict[str, float]
    best: str | None
    """Attempt with the highest score; of a measured run only a confirmed one."""
    measured: bool
    """Scores are measured on a GPU, not estimated."""
    device: str
    """Where an estimated run was judged anew, else empty."""
    renewed: int
    """Verdicts anew."""
    pending: int
    """Candidates that wait for one."""
    devices: tuple[str, ...]
    """GPUs of all sessions."""
    stop: Mapping[str, Any] | None
    """The last stop event (`reason`, `detail`); None while a session runs or after it was killed."""
    wall_seconds: float
    faults: tuple[str, ...]
    """Infrastructure faults, one sentence each."""
    sessions: int

    @property
    def stop_reason(self) -> str | None:
        return None if self.stop is None else str(self.stop["reason"])

    def attempt(self, name: str) -> Attempt:
        """Raises LookupError for an attempt that was not dispatched."""
        for attempt in self.attempts:
            if attempt.id == name:
                return attempt
        raise LookupError(f"the run has no attempt {name}")

    def source(self, turn: Turn) -> str | None:
        return self.folder.blobs.text(turn.source) if turn.source else None

    def request(self, turn: Turn) -> ModelRequest | None:
        return ModelRequest.model_validate_json(self.folder.blobs.text(turn.messages)) if turn.messages else None

    def completion(self, turn: Turn) -> Completion | None:
        return Completion.model_validate_json(self.folder.blobs.text(turn.completion)) if turn.completion else None


def load_run(path: Path) -> RunRecord:
    """Raises UsageError when `path` is no run folder, StorageError when it is damaged."""
    folder = RunFolder.open(path)
    events = read_events(folder.journal)[0] if folder.journal.exists() else []
    history, ended = History(measured=folder.manifest.measured), dict[str, tuple[int, Charge]]()
    ledger = Ledger(folder.manifest.budget, clock=lambda: history.wall)
    for event in events:
        try:
            ledger.apply(event)
            history.apply(event)
        except (KeyError, IndexError, ValueError) as error:
            raise StorageError(f"{folder.journal}:{event['seq'] + 1} does not follow: {error!r}") from error
        if event["t"] == "outcome":
            ended[event["attempt"]] = (len(ended), ledger.spent)
    best = history.best()
    return RunRecord(
        folder=folder,
        manifest=folder.manifest,
        attempts=tuple(
            _attempt(folder, a, ledger, ended.get(a.id)) for a in history.attempts.values() if a.turns or a.id == INIT
        ),
        spent=ledger.spent,
        reserved=ledger.reserved,
        refunds=tuple(e for e in ledger.closed if e.how == "refund"),
        lost=tuple(e for e in ledger.closed if e.how == "lost"),
        excess=tuple(ledger.excess),
        remaining=ledger.remaining(),
        best=best.attempt if best else None,
        measured=history.measured,
        device=history.device,
        renewed=history.renewed,
        pending=sum(1 for _ in history.pending()),
        devices=tuple(dict.fromkeys(d for e in events if e["t"] == "begin" for d in e.get("devices", ()))),
        stop=history.stop,
        wall_seconds=history.wall,
        faults=tuple(e["error"] for e in events if e["t"] == "infra"),
        sessions=sum(1 for e in events if e["t"] == "begin"),
    )


def _attempt(folder: RunFolder, attempt: fold.Attempt, ledger: Ledger, ended: tuple[int, Charge] | None) -> Attempt:
    outcome, proposal = attempt.outcome, attempt.proposal
    order, spent = ended or (None, None)
    return Attempt(
        id=attempt.id,
        operator="init" if attempt.id == INIT else proposal.operator.value,
        parents=proposal.parents,
        context=proposal.context,
        turns=tuple(_turn(folder, turn, ledger) for turn in attempt.turns),
        state="done" if outcome else "waiting" if attempt.waiting else "in_flight",
        status=outcome.status if outcome else None,
        score=outcome.score if outcome else None,
        confirmed=outcome.confirmed if outcome else False,
        duplicate_of=outcome.duplicate_of if outcome else None,
        note=attempt.note,
        order=order,
        spent=spent,
        wall_seconds=attempt.ended_wall if outcome else None,
    )


def _turn(folder: RunFolder, turn: fold.Turn, ledger: Ledger) -> Turn:
    charge, keys = Charge(), {turn.request, *(f"{turn.request}/{part}" for part in PARTS)}
    for entry in ledger.closed:
        if entry.key.partition("@")[0] in keys:
            charge = add(charge, entry.charge)
    return Turn(
        request=turn.request,
        messages=turn.messages,
        completion=turn.completion,
        candidate=turn.candidate,
        source=turn.source,
        verdict=Verdict.model_validate_json(folder.blobs.get(turn.verdict)) if turn.verdict else None,
        feedback=turn.feedback,
        charge=charge,
        gpu=turn.gpu,
        anew=turn.anew,
    )
