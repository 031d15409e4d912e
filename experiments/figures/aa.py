"""A plan timed against itself: how often is it called faster, how often does an interval not hold 1, and what does
memory that changes hands add to the spread of blocks?

The same plan is loaded twice, as candidate and as base; from block to block the two exchange their inputs' memory and
get new outputs, as in a verdict. The intervals are those of the decision and of a confirmation on few blocks.
`experiments/aa.py` is the same question for simulated blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row
from experiments.figures.blocks import Job, block_locations
from experiments.figures.kernels import FAMILIES, Family
from verifier.gpu.supervisor import Plans
from verifier.gpu.visit import Request
from verifier.problem import Problem
from verifier.timing import CONFIRMATION, Timing

SECONDS = 420.0
COUNT = 200
BLOCKS = 24
CASES = (("relu", 1 << 22), ("relu", 1 << 26), ("matmul", 2048), ("matmul", 12288), ("relu", 1 << 29))
"""Family and size: inside the L2 cache, outside of it, bound by arithmetic, that at the power limit, and 2 GiB of
inputs, which the base keeps for two blocks."""
EAGER = Family(
    "Attention", "fp32", "q, k, v", "torch.matmul(torch.softmax(torch.matmul(q, k) / 8, dim=-1), v)",
    "torch.randn(64, N, 64), torch.randn(64, 64, N), torch.randn(64, N, 64)", 4096, "", [], [],
)  # fmt: skip
"""Library steps that move gigabytes, more than 10 ms a call."""
SHORT = 3
"""Of the cases, the first ones: they are compared as many times as often as those whose calls take milliseconds."""
CONFIRM = CONFIRMATION.model_copy(update={"min_blocks": 8, "pilot": 8, "max_seconds": 0.3})
"""The fewest blocks that anything is confirmed on."""
_MOST_BESIDE = 0.05


@dataclass(frozen=True, slots=True)
class Case:
    """A plan on one workload."""

    name: str
    problem: Problem
    plans: Plans
    workload: str

    def request(self, **changes: Any) -> Request:
        return Request(problem=self.problem, seed=SEED, workloads=(self.workload,), **changes)


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """The spread of blocks first, then the comparisons while the clock lasts."""
    cases = _cases(lab)
    turns = [*cases, *cases[:SHORT] * (SHORT - 1)]
    _spread(lab, book, clock, cases)
    with lab.worker() as worker:
        for turn in range(lab.options.count or COUNT):
            case = turns[turn % len(turns)]
            if clock.left < 0:
                return
            if book.has(turn=turn):
                continue
            request = case.request(
                salt=f"{turn}", timed=(case.workload,), draws=("task",), repeats=1, probe=False, steps=False,
                confirmation=CONFIRM,
            )  # fmt: skip
            visit = worker.visit(request, case.plans)
            said: dict[str, Timing | None] = {"decided": None, "confirmed": None}
            if visit.timings:
                said = {"decided": visit.timings[0].decided, "confirmed": visit.timings[0].confirmed}
            decision = str(said["decided"].decision) if said["decided"] else visit.reason or "not timed"
            book.add(
                turn=turn, case=case.name, decision=decision, seconds=visit.seconds["time"],
                **{name: _row(timing) for name, timing in said.items()},
            )  # fmt: skip


def _row(timing: Timing | None) -> Row | None:
    if timing is None:
        return None
    return {
        "log_ratio": timing.log_ratio, "lower": timing.lower, "upper": timing.upper, "blocks": timing.blocks,
        "pairs": timing.pairs, "thrown": dict(timing.thrown), "call": timing.base_seconds, "seconds": timing.seconds,
        "decision": str(timing.decision), "confidence": timing.confidence,
    }  # fmt: skip


def _cases(lab: Lab) -> list[Case]:
    def size(n: int) -> int:
        return 256 if lab.options.small else n

    found = []
    for name, n in CASES:
        traced = lab.trace(FAMILIES[name].problem(name, size(n)), FAMILIES[name].source)
        found.append(Case(f"{name} {n}", traced.problem, traced.against_itself(), traced.workloads[0]))
    problem = EAGER.problem("attention", size(EAGER.size))
    base = lab.judge(problem).baseline("eager")
    plans = Plans(base.plan, base.blobs, base.plan, base.blobs)
    return [*found, Case(f"eager attention {EAGER.size}", problem, plans, problem.timed[0].name)]


def _spread(lab: Lab, book: Book, clock: Clock, cases: Sequence[Case]) -> None:
    options, count = lab.options, 4 if lab.options.small else BLOCKS
    wanted = [(case, anew) for case in cases for anew in (True, False) if not book.has(case=case.name, anew=anew)]
    if not wanted:
        return
    jobs = [Job(case.request(), case.plans, count, anew) for case, anew in wanted]
    for (case, anew), found in zip(
        wanted, block_locations(options.device, options.paths, jobs, clock.left / 3), strict=False
    ):
        book.add(case=case.name, anew=anew, deviation=stdev(found), mean=fmean(found), blocks=found)


def lines(rows: Sequence[Row]) -> list[Line]:
    compared = [r for r in rows if "turn" in r]
    found = []
    if compared:
        faster = sum(r["decision"] == "faster" for r in compared)
        limit = f"<= {0.02 * len(compared):.0f}"
        found.append(Line(f"false claims of a gain in {len(compared)}", str(faster), limit))
        counts = Counter(r["decision"] for r in compared)
        found.append(Line("decisions", ", ".join(f"{n} {what}" for what, n in counts.most_common())))
        found += [_beside(kind, [r[kind] for r in compared if r[kind]]) for kind in ("decided", "confirmed")]
    for case in dict.fromkeys(r["case"] for r in rows):
        said = [_ratios(kind, [r[kind] for r in compared if r["case"] == case and r[kind]])
                for kind in ("decided", "confirmed")]  # fmt: skip
        for row in (r for r in rows if r["case"] == case and "anew" in r):
            how = "exchanged memory" if row["anew"] else "the same memory"
            said.append(f"deviation of {len(row['blocks'])} blocks in {how} {100 * row['deviation']:.3f}%")
        found.append(Line(case, "; ".join(s for s in said if s)))
    return found


def _is_beside(row: Mapping[str, Any]) -> bool:
    """Its interval does not hold 1."""
    return row["lower"] is not None and not row["lower"] <= 0 <= row["upper"]


def _beside(kind: str, ours: Sequence[Mapping[str, Any]]) -> Line:
    known = [r for r in ours if r["lower"] is not None]
    stated = f"of {len(known)} at {100 * known[0]['confidence']:.0f}%" if known else "of 0"
    return Line(f"{kind}: intervals beside 1", f"{sum(map(_is_beside, known))} {stated}",
                f"<= {_MOST_BESIDE * len(known):.0f}")  # fmt: skip


def _ratios(kind: str, ours: Sequence[Mapping[str, Any]]) -> str:
    known = [r for r in ours if r["lower"] is not None]
    if not known:
        return ""
    ratios, halves = [r["log_ratio"] for r in known], [(r["upper"] - r["lower"]) / 2 for r in known]
    return (
        f"{kind}: {sum(map(_is_beside, known))} of {len(known)} beside 1, log ratios {min(ratios):+.4f} to "
        f"{max(ratios):+.4f}, half-width {fmean(halves):.4f}, {fmean(r['blocks'] for r in known):.1f} blocks of "
        f"{1e3 * fmean(r['call'] for r in known):.3f} ms calls in {fmean(r['seconds'] for r in known):.2f} s, "
        f"{sum(sum(r['thrown'].values()) for r in known)} thrown"
    )
