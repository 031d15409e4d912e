"""What happened in a run, folded from its events. The loop, the replay and `load_run` share this one fold.

Events (`t`), besides the ledger's four (reserve, settle, refund, lost):
  begin    a session starts                        ask      a question to the strategy and its proposals
  init     the given candidate, attempt a0000      turn     a request was composed and its reservation held
  answer   a completion arrived and was parsed     verdict  a turn was judged
  wait     an attempt waits for a batch answer     infra    our machinery failed; the attempt is run again
  outcome  an attempt ended                        stop     a session ended
  measure  an estimated run has a GPU from here on: what it kept waits to be judged anew
  anew     one candidate was judged anew
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from strategies.base import Operator, Outcome, Proposal
from verifier.verdict import Status

Event = Mapping[str, Any]
INIT = "a0000"
KEPT = frozenset({Status.CORRECT, Status.UNTESTED, Status.UNTRACEABLE})
"""What a run without a GPU could not finish judging."""


@dataclass(slots=True)
class Turn:
    """One model call of an attempt, or the given candidate. Big texts are blob digests."""

    request: str
    messages: str | None = None
    completion: str | None = None
    source: str | None = None
    candidate: str | None = None
    parsed: str = ""
    """Why no candidate could be parsed, empty when one was."""
    verdict: str | None = None
    feedback: str = ""
    status: Status | None = None
    score: float | None = None
    confirmed: bool = False
    """The score is that of a second visit to the GPU."""
    gpu: Mapping[str, float] = field(default_factory=dict)
    """Leased GPU seconds of its verdict by call: visit, confirm, file, examine."""
    plan: str | None = None
    """Packed plan, where the file itself does not do what its plan does."""
    duplicate_of: str | None = None
    """Attempt that was judged with the same source before."""
    pending: bool = False
    """It waits to be judged anew."""
    anew: bool = False
    """It was judged anew."""


@dataclass(slots=True)
class Attempt:
    """One attempt; `outcome` is None until it has ended."""

    id: str
    proposal: Proposal
    turns: list[Turn] = field(default_factory=list)
    waiting: bool = False
    outcome: Outcome | None = None
    note: str = ""
    """Why it ended before its repairs were used, or empty."""
    ended_wall: float = 0.0
    """Wall seconds of the run when it ended."""

    @property
    def judged(self) -> list[Turn]:
        return [turn for turn in self.turns if turn.status is not None]

    def ending(self) -> Outcome:
        """Its outcome: what its last judged turn came to."""
        last = self.judged[-1]
        return Outcome(
            attempt=self.id,
            proposal=self.proposal,
            status=last.status or Status.UNTESTED,
            score=last.score,
            candidate=last.candidate,
            repairs=len(self.judged) - 1,
            duplicate_of=last.duplicate_of,
            confirmed=last.confirmed,
        )

    def turn(self, number: int) -> Turn | None:
        """Turn `number`, 1 for the first; None when it has not begun."""
        return self.turns[number - 1] if number <= len(self.turns) else None


class History:
    """The fold. `apply` takes events in their order in the journal."""

    def __init__(self, *, measured: bool = False) -> None:
        """`measured`: the run began with a GPU."""
        self.measured = measured
        self.device = ""
        """The GPU on which what was estimated is judged anew."""
        self.renewed = 0
        """Verdicts anew."""
        self.attempts: dict[str, Attempt] = {}
        self.archive: list[Outcome] = []
        self.judged: dict[str, tuple[str, Turn]] = {}
        """Candidate id to the first attempt and turn that judged it."""
        self.asks = 0
        self.stop: Mapping[str, Any] | None = None
        """The last stop event, None while a session runs."""
        self.wall = 0.0

    def apply(self, event: Event) -> None:
        self.wall = event.get("wall", self.wall)
        match event["t"]:
            case "begin":
                self.stop = None
            case "stop":
                self.stop = event
            case "ask":
                self.asks += 1
                for made in event["proposals"]:
                    self.attempts[made["attempt"]] = Attempt(made["attempt"], proposal_of(made))
            case "init":
                turn = Turn(f"{INIT}/1", source=event["source"], candidate=event["candidate"])
                self.attempts[INIT] = Attempt(INIT, Proposal(Operator.DRAFT), [turn])
            case "measure":
                self._measure(event)
            case "anew":
                self._anew(event)
            case "turn" | "answer" | "verdict" | "wait" | "outcome":
                self._attempt_event(self.attempts[event["attempt"]], event)

    def in_flight(self) -> Iterator[Attempt]:
        """Attempts that were proposed and have not ended, in the order of their proposals."""
        return (a for a in self.attempts.values() if a.outcome is None)

    def pending(self) -> Iterator[tuple[Attempt, int, Turn]]:
        """One turn for each candidate that waits to be judged anew, with its attempt and number."""
        seen: set[str | None] = set()
        for attempt in self.attempts.values():
            for number, turn in enumerate(attempt.turns, 1):
                if turn.pending and turn.candidate not in seen:
                    seen.add(turn.candidate)
                    yield attempt, number, turn

    def best(self) -> Outcome | None:
        """The outcome with the highest score, the earliest of equals; of a measured run only confirmed ones."""
        scored = [o for o in self.archive if o.score is not None and (o.confirmed or not self.measured)]
        return max(scored, key=lambda o: o.score or 0.0, default=None)

    def next_id(self) -> str:
        return f"a{sum(1 for a in self.attempts if a != INIT) + 1:04d}"

    def _attempt_event(self, attempt: Attempt, event: Event) -> None:
        match event["t"]:
            case "turn":
                attempt.turns.append(Turn(event["request"], messages=event["messages"]))
            case "wait":
                attempt.waiting = True
            case "answer":
                attempt.waiting = False
                turn = attempt.turns[event["turn"] - 1]
                turn.completion, turn.source = event["completion"], event["source"]
                turn.candidate, turn.parsed = event["candidate"], event["parsed"]
            case "verdict":
                self._judged(attempt, event)
            case "outcome":
                attempt.outcome = outcome_of(attempt.proposal, event)
                attempt.note, attempt.ended_wall = event["note"], self.wall
                self.archive.append(attempt.outcome)

    def _measure(self, event: Event) -> None:
        """No estimate is left beside a measurement: until it is judged anew, what was kept is untested."""
        self.measured, self.device = True, event["device"]
        for attempt in self.attempts.values():
            for turn in attempt.turns:
                if turn.status in KEPT:
                    turn.status, turn.score, turn.pending = Status.UNTESTED, None, True
            self._end_again(attempt)

    def _anew(self, event: Event) -> None:
        self.renewed += 1
        for attempt in self.attempts.values():
            turns = [turn for turn in attempt.turns if turn.pending and turn.candidate == event["candidate"]]
            for turn in turns:
                _take_verdict(turn, event)
                turn.pending, turn.anew = False, True
            if turns:
                self._end_again(attempt)

    def _end_again(self, attempt: Attempt) -> None:
        """An attempt that had ended, ends as its last turn says now; its place in the archive stays."""
        if attempt.outcome is not None:
            made = attempt.ending()
            self.archive[self.archive.index(attempt.outcome)] = made
            attempt.outcome = made

    def _judged(self, attempt: Attempt, event: Event) -> None:
        turn = attempt.turns[event["turn"] - 1]
        _take_verdict(turn, event)
        turn.duplicate_of = event["duplicate_of"]
        if turn.candidate is not None:
            self.judged.setdefault(turn.candidate, (attempt.id, turn))


def _take_verdict(turn: Turn, event: Event) -> None:
    turn.verdict, turn.feedback = event["verdict"], event["feedback"]
    turn.status, turn.score = Status(event["status"]), event["score"]
    turn.plan = event.get("plan")
    turn.confirmed, turn.gpu = event.get("confirmed", False), event.get("gpu", {})


def proposal_of(made: Event) -> Proposal:
    """A proposal from the journal."""
    return Proposal(
        operator=Operator(made["operator"]),
        parents=tuple(made["parents"]),
        context=tuple(made["context"]),
        model=made["model"],
        sampling=dict(made["sampling"]),
    )


def proposal_event(attempt: str, proposal: Proposal) -> dict[str, Any]:
    """A proposal for the journal; the inverse of `proposal_of`."""
    return {
        "attempt": attempt,
        "operator": proposal.operator.value,
        "parents": list(proposal.parents),
        "context": list(proposal.context),
        "model": proposal.model,
        "sampling": dict(proposal.sampling),
    }


def outcome_of(proposal: Proposal, event: Event) -> Outcome:
    """An outcome from the journal."""
    return Outcome(
        attempt=event["attempt"],
        proposal=proposal,
        status=Status(event["status"]),
        score=event["score"],
        candidate=event["candidate"],
        repairs=event["repairs"],
        duplicate_of=event["duplicate_of"],
        confirmed=event.get("confirmed", False),
    )


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """Everything in an outcome but its proposal, which its attempt names."""
    return {
        "attempt": outcome.attempt,
        "status": outcome.status.value,
        "score": outcome.score,
        "candidate": outcome.candidate,
        "repairs": outcome.repairs,
        "duplicate_of": outcome.duplicate_of,
        "confirmed": outcome.confirmed,
    }


def outcome_event(attempt: Attempt, note: str) -> dict[str, Any]:
    """The event of an attempt's end."""
    return {"t": "outcome", **outcome_record(attempt.ending()), "note": note}
