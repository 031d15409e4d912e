"""A plan timed against itself: how often is it called faster, and what does memory that changes hands add to the spread
of blocks?

The same plan is loaded twice, as candidate and as base; from block to block the two exchange their inputs' memory and
get new outputs, as in a verdict.
`experiments/aa.py` is the same question for simulated blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row, Traced
from experiments.figures.blocks import Job, block_locations
from experiments.figures.kernels import FAMILIES

SECONDS = 420.0
COUNT = 200
BLOCKS = 48
CASES = (("relu", 1 << 22), ("relu", 1 << 26), ("matmul", 2048))
"""Family and size: inside the L2 cache, outside of it, bound by arithmetic."""


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """The spread of blocks first, then the comparisons while the clock lasts."""
    traced = {f"{name} {n}": _traced(lab, name, n) for name, n in CASES}
    _spread(lab, book, clock, traced)
    with lab.worker() as worker:
        for turn in range(lab.options.count or COUNT):
            case = list(traced)[turn % len(traced)]
            if clock.left < 0:
                return
            if book.has(turn=turn):
                continue
            item = traced[case]
            request = item.request(
                SEED,
                salt=f"{turn}",
                timed=item.workloads,
                draws=("task",),
                repeats=1,
                probe=False,
                steps=False,
            )
            visit = worker.visit(request, item.against_itself())
            timing = visit.timings[0].decided if visit.timings else None
            book.add(
                turn=turn, case=case, decision=str(timing.decision) if timing else visit.reason or "not timed",
                log_ratio=timing.log_ratio if timing else None, blocks=timing.blocks if timing else 0,
                thrown=sum(timing.thrown.values()) if timing else 0, seconds=visit.seconds["time"],
            )  # fmt: skip


def _traced(lab: Lab, name: str, n: int) -> Traced:
    return lab.trace(FAMILIES[name].problem(name, 256 if lab.options.small else n), FAMILIES[name].source)


def _spread(lab: Lab, book: Book, clock: Clock, traced: Mapping[str, Traced]) -> None:
    options, count = lab.options, 4 if lab.options.small else BLOCKS
    names = [(case, anew) for case in traced for anew in (True, False) if not book.has(case=case, anew=anew)]
    if not names:
        return
    jobs = [Job(traced[case].request(SEED), traced[case].against_itself(), count, anew) for case, anew in names]
    for (case, anew), found in zip(
        names, block_locations(options.device, options.paths, jobs, clock.left / 3), strict=False
    ):
        book.add(case=case, anew=anew, deviation=stdev(found), mean=fmean(found), blocks=found)


def lines(rows: Sequence[Row]) -> list[Line]:
    compared = [r for r in rows if "turn" in r]
    found = []
    if compared:
        faster = sum(r["decision"] == "faster" for r in compared)
        limit = f"<= {0.02 * len(compared):.0f}"
        found.append(Line(f"false claims of a gain in {len(compared)}", str(faster), limit))
        counts = Counter(r["decision"] for r in compared)
        found.append(Line("decisions", ", ".join(f"{n} {what}" for what, n in counts.most_common())))
    for case in dict.fromkeys(r["case"] for r in rows):
        ours = [r["log_ratio"] for r in compared if r["case"] == case and r["log_ratio"] is not None]
        said = [f"log ratios {min(ours):+.4f} to {max(ours):+.4f} over {len(ours)}"] if ours else []
        for row in (r for r in rows if r["case"] == case and "anew" in r):
            how = "exchanged memory" if row["anew"] else "the same memory"
            said.append(f"deviation of {len(row['blocks'])} blocks in {how} {100 * row['deviation']:.3f}%")
        found.append(Line(case, "; ".join(said)))
    return found
