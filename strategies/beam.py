"""Beam search over refinements, without rounds: a free slot never waits for a slow neighbour.

Drafts are level 0; refining an attempt of level d gives one of level d + 1. A level holds `width` x
`branching` attempts (its quota) and the best `width` distinct correct ones of it are its beam; each is
refined `branching` times.

A classical beam ends a level before it begins the next one. Here a member is expanded as soon as it is among
the best 1/`branching` of what has ended on its level, rounded up: the promotion rule of ASHA (Li et al.,
2020). On average each slot that an outcome frees gets one new child, and once the level has ended, its beam
is the classical one. For a free slot the first of these that applies is proposed:

1. on the lowest level with room in its quota, a child of the member with the fewest children, or a draft;
2. one repair for each failed attempt that left a source; it stands on its parent's level, outside the quota;
3. one more child for the member with the fewest children among the best `width` of all levels;
4. one more draft.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from strategies.base import Operator, Outcome, Proposal, SearchView
from strategies.lineage import Lineage, failed, merit
from strategies.parameters import at_least
from verifier.verdict import Status


class Beam:
    """`width`: members of a level that are expanded. `branching`: children of each."""

    def __init__(self, width: int = 4, branching: int = 3) -> None:
        at_least(1, width=width, branching=branching)
        self.width = width
        self.branching = branching

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        board = Board(Lineage.of(view), self.width, self.branching)
        return [board.next() for _ in range(n)]

    def observe(self, outcome: Outcome) -> None:
        """Nothing to remember: every question is answered from the view."""

    def done(self, view: SearchView) -> str | None:
        return None


class Board:
    """Levels of one view; `next` proposes one attempt and counts it as dispatched."""

    def __init__(self, lineage: Lineage, width: int, branching: int) -> None:
        self.width, self.branching = width, branching
        self.started: Counter[int] = Counter()
        """Level to attempts that count against its quota."""
        self.ended: Counter[int] = Counter()
        self.children: Counter[str] = Counter()
        correct: defaultdict[int, list[Outcome]] = defaultdict(list)
        broken: list[str] = []
        repaired: set[str] = set()
        self.places = lineage.places
        for attempt, proposal in lineage.proposals.items():
            level = self.places[attempt].level
            outcome = lineage.ended.get(attempt)
            if proposal.operator is Operator.REPAIR:
                repaired.update(proposal.parents)
            else:
                self.started[level] += 1
                self.ended[level] += outcome is not None
                self.children.update(proposal.parents)
            if outcome is None:
                continue
            if outcome.status is Status.CORRECT:
                correct[level].append(outcome)
            elif failed(outcome) and outcome.candidate and proposal.operator is not Operator.REPAIR:
                broken.append(attempt)
        self.broken = [attempt for attempt in broken if attempt not in repaired]
        self.beams = {level: distinct(outcomes, lineage) for level, outcomes in correct.items()}
        self.best = distinct([o for outcomes in correct.values() for o in outcomes], lineage)[:width]

    def next(self) -> Proposal:
        for level in range(max(self.started, default=-1) + 2):
            if self.started[level] >= self.width * self.branching:
                continue
            if level == 0:
                return self._draft()
            members = [o for o in self._beam(level - 1) if self.children[o.attempt] < self.branching]
            if members:
                return self._refine(members)
        if self.broken:
            return Proposal(Operator.REPAIR, (self.broken.pop(0),))
        return self._refine(self.best) if self.best else self._draft()

    def _beam(self, level: int) -> list[Outcome]:
        share = -(-self.ended[level] // self.branching)
        return self.beams.get(level, [])[: min(self.width, share)]

    def _draft(self) -> Proposal:
        self.started[0] += 1
        return Proposal(Operator.DRAFT)

    def _refine(self, members: list[Outcome]) -> Proposal:
        parent = min(members, key=lambda o: self.children[o.attempt]).attempt
        self.children[parent] += 1
        self.started[self.places[parent].level + 1] += 1
        return Proposal(Operator.REFINE, (parent,))


def distinct(outcomes: list[Outcome], lineage: Lineage) -> list[Outcome]:
    """Best first, equal scores by id, one outcome for each candidate and its duplicates."""
    first: dict[str, Outcome] = {}
    for outcome in sorted(outcomes, key=lambda o: (-merit(o), o.attempt)):
        original = lineage.ended.get(outcome.duplicate_of or "")  # named by attempt, or by candidate
        copied = original.candidate if original else outcome.duplicate_of
        first.setdefault(copied or outcome.candidate or outcome.attempt, outcome)
    return list(first.values())
