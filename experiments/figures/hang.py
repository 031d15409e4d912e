"""From the deadline of an endless kernel to the next verdict.

An endless candidate and a right one are judged one after the other; the time of both together less the deadline is at
least what passed between the deadline and the second verdict: all of the first one's other work is in it too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row
from experiments.figures.kernels import FAMILIES, HANG, RELU

SECONDS = 90.0
COUNT = 5
DEADLINE = 2.0


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    problem = FAMILIES["relu"].problem("relu", 256 if lab.options.small else 1 << 24)
    endless, right = lab.trace(problem, HANG), lab.trace(problem, RELU)
    deadline = 0.5 if lab.options.small else DEADLINE
    book.clear()
    with lab.worker() as worker:
        worker.visit(right.request(SEED, timed=right.workloads), right.plans())
        for turn in range(lab.options.count or COUNT):
            if clock.left < deadline:
                return
            start = time.perf_counter()
            stuck = worker.visit(endless.request(SEED + turn, command_seconds=deadline), endless.plans())
            ended = time.perf_counter()
            after = worker.visit(right.request(SEED + turn, timed=right.workloads), right.plans())
            done = time.perf_counter()
            book.add(
                turn=turn, deadline=deadline, status=str(stuck.status), next=str(after.status or after.test.outcome),
                late=done - start - deadline, first=ended - start, second=done - ended,
                second_inside=sum(after.seconds.values()),
            )  # fmt: skip


def lines(rows: Sequence[Row]) -> list[Line]:
    if not rows:
        return []
    worst = max(rows, key=lambda r: float(r["late"]))
    said = f"{worst['late']:.2f} s; the next visit itself took {worst['second_inside']:.2f} s of it"
    status = ", ".join(sorted({f"{r['status']} then {r['next']}" for r in rows}))
    return [Line(f"deadline to next verdict, most of {len(rows)}", said, "<= 2 s"), Line("verdicts", status)]
