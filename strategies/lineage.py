"""Family relations of the attempts in a view, for strategies that follow parents.

Everything is derived from the set of attempts: the order in which outcomes arrived does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strategies.base import Operator, Outcome, Proposal, SearchView
from verifier.verdict import Status

NO_SCORE = float("-inf")
"""Ranks a correct outcome without a score behind every score. A failure is not ranked at all."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an attempt stands. The root is the first ancestor whose own parent is not in the view."""

    root: str
    depth: int
    """Attempts between it and the root, along first parents."""
    level: int
    """The same without repairs: a repair stands where its parent stood."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Attempts of one view by id. `ended` and `pending` share no key; `proposals` has both, sorted by id."""

    ended: Mapping[str, Outcome]
    pending: Mapping[str, Proposal]
    proposals: Mapping[str, Proposal]
    places: Mapping[str, Place]

    @classmethod
    def of(cls, view: SearchView) -> Lineage:
        ended = {outcome.attempt: outcome for outcome in reversed(view.archive)}
        pending = {name: p for name, p in view.in_flight.items() if name not in ended}
        known = {name: outcome.proposal for name, outcome in ended.items()} | pending
        proposals = dict(sorted(known.items()))
        return cls(ended, pending, proposals, _places(proposals))


def _places(proposals: Mapping[str, Proposal]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for start in proposals:
        path = [start]
        while (parent := _parent(proposals, path[-1])) is not None and parent not in places:
            path.append(parent)
        place = None if parent is None else places[parent]
        for attempt in reversed(path):
            if place is None:
                place = Place(attempt, 0, 0)
            else:
                repair = proposals[attempt].operator is Operator.REPAIR
                place = Place(place.root, place.depth + 1, place.level + (not repair))
            places[attempt] = place
    return places


def _parent(proposals: Mapping[str, Proposal], attempt: str) -> str | None:
    """The first parent. An attempt only names earlier ones, so there is no cycle."""
    first = proposals[attempt].parents[:1]
    return first[0] if first and first[0] in proposals else None


def failed(outcome: Outcome) -> bool:
    """Whether there is something to repair. `untested` is no failure: nothing objected to it."""
    return outcome.status not in (Status.CORRECT, Status.UNTESTED)


def merit(outcome: Outcome) -> float:
    """Sort key of a correct outcome, higher is better."""
    return NO_SCORE if outcome.score is None else outcome.score
