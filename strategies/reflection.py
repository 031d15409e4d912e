"""The origin's closed loop (NVIDIA, February 2025): generate, verify, put the verdict into the next prompt.

A trajectory is a chain of attempts, each made from the one before: a draft first, then a repair while the
last attempt failed and a refinement while it was correct. The best attempt of the trajectory rides along as
context once the chain has left it. After `patience` attempts in a row without a first correct or a better
kernel the trajectory is given up and a new draft starts in its place.

The origin ran one chain on one GPU. Here there are `chains` side by side, by default one for each slot of the
run; `chains=1` is the origin's. They share nothing, so a slow trajectory holds up no other.
"""

from __future__ import annotations

from strategies.base import Operator, Outcome, Proposal, SearchView
from strategies.lineage import Lineage, failed, merit
from strategies.parameters import at_least
from verifier.verdict import Status


class Reflection:
    """`chains`: trajectories at a time, None for one a slot. `patience`: attempts without progress, then a
    restart."""

    def __init__(self, chains: int | None = None, patience: int = 6) -> None:
        at_least(1, patience=patience)
        if chains is not None:
            at_least(1, chains=chains)
        self.chains = chains
        self.patience = patience

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        lineage = Lineage.of(view)
        chains = trajectories(lineage)
        busy = [c for c in chains if c[-1] not in lineage.ended]
        outcomes = [[lineage.ended[a] for a in c] for c in chains if c[-1] in lineage.ended]
        idle = [o for o in outcomes if stagnation(o) < self.patience]
        idle.sort(key=len)
        steps = [continuation(o) for o in idle]
        free = (self.chains or max(view.width, 1)) - len(busy) - len(idle)
        return (steps + [Proposal(Operator.DRAFT)] * free)[:n]

    def observe(self, outcome: Outcome) -> None:
        """Nothing to remember: every question is answered from the view."""

    def done(self, view: SearchView) -> str | None:
        return None


def trajectories(lineage: Lineage) -> list[list[str]]:
    """Attempt ids of each trajectory from first to last, trajectories by the ids of their first attempts."""
    chains: dict[str, list[tuple[int, str]]] = {}
    for attempt, place in lineage.places.items():
        chains.setdefault(place.root, []).append((place.depth, attempt))
    return [[attempt for _, attempt in sorted(chains[root])] for root in sorted(chains)]


def stagnation(outcomes: list[Outcome]) -> int:
    """Attempts since the last progress: the first correct kernel, or one that beats all before it."""
    best: float | None = None
    idle = 0
    for outcome in outcomes:
        idle += 1
        if outcome.status is Status.CORRECT and (best is None or merit(outcome) > best):
            best, idle = merit(outcome), 0
    return idle


def continuation(outcomes: list[Outcome]) -> Proposal:
    """The next step of a trajectory whose attempts have all ended."""
    last = outcomes[-1]
    correct = [o for o in outcomes if o.status is Status.CORRECT]
    best = max(correct, key=merit, default=last)
    context = () if best is last else (best.attempt,)
    return Proposal(Operator.REPAIR if failed(last) else Operator.REFINE, (last.attempt,), context)
