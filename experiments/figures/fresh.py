"""What honest kernels lose on inputs that they have not seen: the time of the checked call over the block's others.

Every right candidate of the stock, a few blocks each, all of them checked. `verifier.gpu.pairs` calls a candidate that
is slower than its limits on fresh inputs one that remembers answers; these are the numbers behind the limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row
from experiments.figures.blocks import Job, fresh_times
from experiments.figures.stock import items
from verifier.gpu.pairs import SURPRISE, SURPRISE_SECONDS

SECONDS = 120.0
BLOCKS = 12


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """A row for each candidate: the pairs (fresh, seen) of its blocks, seconds."""
    right = [item for item in items(lab) if not item.planted]
    jobs = tuple(Job(i.traced.request(SEED + i.number), i.traced.plans(), BLOCKS, True) for i in right)
    book.clear()
    found = fresh_times(lab.options.device, lab.options.paths, jobs, max(clock.left, 1.0))
    for item, pairs in zip(right, found, strict=False):
        book.add(
            number=item.number, problem=item.traced.problem.name, pairs=pairs,
            ratio=median(fresh / seen for fresh, seen in pairs) if pairs else None,
            over=median(fresh - seen for fresh, seen in pairs) if pairs else None,
        )  # fmt: skip


def lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    for name in sorted({r["problem"] for r in rows}):
        every = [(f / s, f - s) for r in rows if r["problem"] == name for f, s in r["pairs"]]
        if every:
            ratios, over = sorted(r for r, _ in every), sorted(o for _, o in every)
            said = f"ratio {median(ratios):.3f}, most {ratios[-1]:.3f}; over by {1e6 * median(over):.1f} us, most "
            found.append(Line(f"{name}, {len(every)} fresh calls", f"{said}{1e6 * over[-1]:.1f} us"))
    medians = [(r["ratio"], r["over"]) for r in rows if r["ratio"] is not None]
    if medians:
        beyond = sum(ratio > SURPRISE and over > SURPRISE_SECONDS for ratio, over in medians)
        said = f"{max(r for r, _ in medians):.3f}; {1e6 * max(o for _, o in medians):.1f} us; {beyond} beyond both"
        found.append(Line(f"largest medians of {len(medians)} candidates", said, "none beyond both"))
    return found
