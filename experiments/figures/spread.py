"""How far the confirmed speed-up of one candidate spreads over separate judgements: other processes, seeds, memory."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row, Traced
from experiments.figures.kernels import FAMILIES
from verifier.gpu.supervisor import GpuWorker
from verifier.gpu.visit import Visit
from verifier.timing import CONFIRMATION

SECONDS = 240.0
COUNT = 10
CASES = ("matmul", "relu")


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """New processes for each turn."""
    small = 256 if lab.options.small else None
    traced = {name: lab.trace(FAMILIES[name].problem(name, small), FAMILIES[name].source) for name in CASES}
    for turn in range(lab.options.count or COUNT):
        waiting = [name for name in CASES if not book.has(case=name, turn=turn)]
        if clock.left < 0 or not waiting:
            continue
        with lab.worker() as worker:
            for name in waiting:
                book.add(case=name, turn=turn, **result(judged(worker, traced[name], turn)))


def judged(worker: GpuWorker, item: Traced, turn: int) -> Visit:
    """A visit with confirmation; `turn` changes its seed."""
    request = item.request(
        SEED + turn, timed=item.workloads, confirmation=CONFIRMATION, draws=("task", "normal"), steps=False
    )
    return worker.visit(request, item.plans())


def result(visit: Visit) -> Row:
    """What a row says of a visit with confirmation."""
    status = str(visit.status or visit.test.outcome)
    if not visit.timings or visit.timings[0].confirmed is None:
        return {"status": status, "reason": visit.reason, "speedup": None}
    timing, confirmed = visit.timings[0], visit.timings[0].confirmed
    half = None if confirmed.upper is None or confirmed.lower is None else (confirmed.upper - confirmed.lower) / 2
    return {
        "status": status, "speedup": confirmed.speedup, "half_width": half, "decision": str(confirmed.decision),
        "blocks": confirmed.blocks, "thrown": sum(confirmed.thrown.values()), "pairs": confirmed.pairs,
        "candidate_seconds": confirmed.candidate_seconds, "base_seconds": confirmed.base_seconds,
        "flags": [str(f) for f in confirmed.flags], "graphs": list(timing.graphs),
        "decided": timing.decided.speedup, "seconds": confirmed.seconds,
    }  # fmt: skip


def lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    for name in CASES:
        ours = [r for r in rows if r["case"] == name and r["speedup"] is not None]
        if not ours:
            continue
        speeds = [r["speedup"] for r in ours]
        widest = max(r["half_width"] or float("inf") for r in ours)
        said = f"{100 * (max(speeds) / min(speeds) - 1):.2f}%: {min(speeds):.4f} to {max(speeds):.4f}x over {len(ours)}"
        found.append(Line(f"{name}, max/min - 1", said, "<= 0.5%"))
        flags = sorted({f for r in ours for f in r["flags"]})
        more = (
            f"half-width up to {100 * widest:.2f}%, {ours[0]['candidate_seconds'] * 1e3:.3f} ms against "
            f"{ours[0]['base_seconds'] * 1e3:.3f} ms, {sum(r['thrown'] for r in ours)} blocks thrown, flags {flags}"
        )
        found.append(Line(f"{name}, in detail", more))
    return found
