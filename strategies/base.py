"""The contract between a search policy and the loop that runs it (docs: README, "Write a strategy").

A strategy decides and does nothing else: no I/O, no clock, no global random state. `propose` may return fewer proposals
than asked, or none, which means "wait". `observe` accepts outcomes in any order and treats a repeat as a no-op. The
strategy's whole state is what it derived from the outcomes it observed, so replaying the same calls restores it.

The shape follows TreeQuest's ask/tell (order-independent, idempotent tell) and OpenEvolve's immutable snapshots that
include pending work.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from verifier.verdict import Status


class Operator(StrEnum):
    """What the model is asked to do. The prompts belong to the agent and are the same for every strategy."""

    DRAFT = "draft"
    """A first kernel from the problem alone."""
    REPAIR = "repair"
    """Fix a parent that is not correct."""
    REFINE = "refine"
    """Make a correct parent faster."""
    DIVERSIFY = "diversify"
    """A kernel unlike the parents."""
    CROSSOVER = "crossover"
    """Join the strengths of two or more parents."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One attempt that a strategy asks for. Parents and context name attempts in the archive."""

    operator: Operator
    parents: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    """Further attempts to show the model besides the parents."""
    model: str | None = None
    """Name of the model profile, None for the run's default."""
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Sampling parameters that differ from the run's, for example temperature."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one attempt: exactly one per proposal. Infrastructure faults are refunded, re-run and never shown.

    Where an estimated run goes on with a GPU, what was kept is judged anew: its outcomes are observed again, with other
    scores, and replace the earlier ones.
    """

    attempt: str
    proposal: Proposal
    status: Status
    score: float | None
    """Mean log speed-up over the base, natural logarithm; None unless correct. A failure is never 0."""
    candidate: str | None
    """Candidate id, None when no source could be parsed."""
    repairs: int = 0
    duplicate_of: str | None = None
    confirmed: bool = False
    """The score was measured a second time, on fresh inputs. Only such an outcome is a measured run's best; all scores
    of a run are of one kind, measured or estimated."""

    def __post_init__(self) -> None:
        if (self.score is not None) and self.status is not Status.CORRECT:
            raise ValueError("only a correct outcome has a score")


@dataclass(frozen=True, slots=True)
class SearchView:
    """What a strategy may know, frozen at the moment of the question."""

    archive: tuple[Outcome, ...]
    """All outcomes so far, in the order in which they were observed."""
    in_flight: Mapping[str, Proposal]
    """Attempts that were dispatched and have not ended."""
    remaining: Mapping[str, float]
    """Capped budget axis to the share that is neither spent nor reserved, from 0 to 1."""
    width: int
    """How many attempts may be in flight."""
    rng: random.Random
    """Seeded by the run and the number of earlier questions; the only source of chance."""

    def best(self) -> Outcome | None:
        """The outcome with the highest score, the earliest of equals; None when nothing is correct."""
        scored = [o for o in self.archive if o.score is not None]
        return max(scored, key=lambda o: o.score or 0.0, default=None)


@runtime_checkable
class Strategy(Protocol):
    """A search policy."""

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        """At most `n` proposals; fewer or none means wait."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Takes one outcome, in any order; a repeated one changes nothing."""
        ...

    def done(self, view: SearchView) -> str | None:
        """A reason to stop early, or None."""
        ...
