"""Independent drafts, the best one wins: the baseline that every other strategy must beat.

Each proposal is a draft from the problem alone: all slots are always busy and nothing is learnt on the way.
"""

from __future__ import annotations

from strategies.base import Operator, Outcome, Proposal, SearchView
from strategies.lineage import Lineage
from strategies.parameters import at_least


class BestOfN:
    """`samples` bounds the number of drafts; None leaves the end to the budget."""

    def __init__(self, samples: int | None = None) -> None:
        if samples is not None:
            at_least(1, samples=samples)
        self.samples = samples

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        if self.samples is not None:
            lineage = Lineage.of(view)
            n = min(n, self.samples - len(lineage.ended) - len(lineage.pending))
        return [Proposal(Operator.DRAFT) for _ in range(n)]

    def observe(self, outcome: Outcome) -> None:
        """Nothing to remember: every question is answered from the view."""

    def done(self, view: SearchView) -> str | None:
        if self.samples is not None and len(Lineage.of(view).ended) >= self.samples:
            return f"{self.samples} samples drawn"
        return None
