"""The question to the strategy, asked by the loop and asked again by the replay.

A strategy sees a view and answers with a reason to stop or with proposals. The journal keeps what the view
was made of and its digest. On resume the same questions are put to a fresh strategy, and both the view and
the answer must be what was recorded; that is how "the replayed prefix is identical" is an assertion and not a
hope.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.budget import Ledger
from agent.history import History, outcome_record, proposal_event
from strategies.base import Operator, Proposal, SearchView, Strategy
from verifier.errors import WarpsmithError

_PARENTS = {Operator.REPAIR: 1, Operator.REFINE: 1, Operator.CROSSOVER: 2}


class StrategyError(WarpsmithError):
    """A strategy broke its contract: it stalled, proposed too much or named what has not ended."""


class ReplayError(WarpsmithError):
    """The journal does not follow from the strategy, the seed and the code at hand."""

    def __init__(self, message: str) -> None:
        super().__init__(message, next_step="resume with the version that started the run, or start a new run")


@dataclass(frozen=True, slots=True)
class Interview:
    """Puts questions to one strategy. `name` is for messages."""

    strategy: Strategy
    name: str
    seed: int
    width: int
    models: frozenset[str] = frozenset()
    """Names that a proposal may give besides None."""

    def view(self, history: History, remaining: Mapping[str, float]) -> SearchView:
        return SearchView(
            archive=tuple(history.archive),
            in_flight={a.id: a.proposal for a in history.in_flight()},
            remaining=dict(remaining),
            width=self.width,
            rng=random.Random(f"{self.seed}/{history.asks}"),
        )

    def ask(self, history: History, remaining: Mapping[str, float], n: int) -> dict[str, Any]:
        """One question as an event: digest of the view, reason to stop or None, at most `n` proposals."""
        view = self.view(history, remaining)
        event = {"t": "ask", "n": n, "view": digest(view, n), "remaining": dict(remaining)}
        reason = self.strategy.done(view)
        proposals = [] if reason else self._checked(self.strategy.propose(view, n), history, n)
        first = int(history.next_id()[1:])
        made = [proposal_event(f"a{first + i:04d}", p) for i, p in enumerate(proposals)]
        return event | {"done": reason, "proposals": made}

    def replay(self, event: Mapping[str, Any], history: History, ledger: Ledger) -> None:
        """Asks a recorded question again. Raises ReplayError when the view or the answer differs."""
        recorded = dict(event["remaining"])
        again = ledger.remaining()
        if "wall_seconds" in recorded and "wall_seconds" in again:
            again["wall_seconds"] = recorded["wall_seconds"]  # the clock is the one thing that is not replayed
        if again != recorded:
            raise ReplayError(f"journal line {event['seq'] + 1}: the ledger differs from the recorded one")
        answer = self.ask(history, recorded, event["n"])
        for part in ("view", "done", "proposals"):
            if answer[part] != event[part]:
                raise ReplayError(
                    f"journal line {event['seq'] + 1}: strategy {self.name} does not repeat its {part}; "
                    "its code changed, or it uses a clock or chance of its own"
                )

    def _checked(self, proposals: Sequence[Proposal], history: History, n: int) -> Sequence[Proposal]:
        if len(proposals) > n:
            raise StrategyError(f"strategy {self.name} was asked for {n} proposals and made {len(proposals)}")
        ended = {o.attempt for o in history.archive}
        for proposal in proposals:
            if unknown := [a for a in (*proposal.parents, *proposal.context) if a not in ended]:
                raise StrategyError(f"strategy {self.name} names {unknown[0]}, which has not ended")
            if proposal.model is not None and proposal.model not in self.models:
                raise StrategyError(
                    f"strategy {self.name} names the model {proposal.model!r}, which the run was not given"
                )
            if len(proposal.parents) < _PARENTS.get(proposal.operator, 0):
                raise StrategyError(f"strategy {self.name}: {proposal.operator} needs more parents")
        return proposals


def digest(view: SearchView, n: int) -> str:
    """SHA-256 of everything in the view, first 16 hex digits."""
    archive = [outcome_record(outcome) for outcome in view.archive]
    flying = [proposal_event(a, p) for a, p in view.in_flight.items()]
    parts = [archive, flying, sorted(view.remaining.items()), view.width, n, view.rng.getstate()[1][:4]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
