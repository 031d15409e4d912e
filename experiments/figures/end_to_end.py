"""Verdicts per hour end to end: the sources of `stock`, traced, interpreted and judged, on all cores and one GPU.

The references are traced before the clock starts, as a search does once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from experiments.figures import throughput
from experiments.figures.base import Book, Clock, Lab, Line, Row
from experiments.figures.stock import Item, items
from experiments.figures.throughput import about, benches_of
from verifier.candidate import Candidate
from verifier.errors import InfrastructureError
from verifier.gpu.bench import GpuBench

SECONDS = 480.0
STAGES = ("trace", "profile", "interpret", "check", "time")


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    stream = items(lab)
    book.clear()
    with lab.worker() as worker, ThreadPoolExecutor(lab.options.cores) as pool:
        benches = benches_of(stream, worker)
        list(pool.map(lab.judge, {item.traced.problem.id: item.traced.problem for item in stream}.values()))
        start = time.perf_counter()
        running = {pool.submit(_judge, lab, benches, item, clock): item for item in stream}
        _collect(running, book, start)


def _judge(lab: Lab, benches: Mapping[str, GpuBench], item: Item, clock: Clock) -> Row | None:
    """None where the clock has run out."""
    if clock.left < 0:
        return None
    problem, began = item.traced.problem, time.perf_counter()
    try:
        verdict = lab.judge(problem).judge(Candidate(source=item.source), benches[problem.name].visit)
    except InfrastructureError as error:
        return {"status": "fault", "reason": str(error)[:200], "wall": time.perf_counter() - began}
    parts = {name.removeprefix("gpu "): spent for name, spent in verdict.seconds.items()}
    return {
        "status": str(verdict.status), "stage": str(verdict.stage), "reason": verdict.reason[:200],
        "wall": time.perf_counter() - began, **{name: parts.get(name) for name in STAGES},
    }  # fmt: skip


def _collect(running: Mapping[Future[Row | None], Item], book: Book, start: float) -> None:
    for future in as_completed(running):
        if (found := future.result()) is not None:
            book.add(**about(running[future]), **found, at=time.perf_counter() - start)


def lines(rows: Sequence[Row]) -> list[Line]:
    found = throughput.lines(rows, ">= 3,000")
    sums = {name: sum(r.get(name) or 0.0 for r in rows) for name in STAGES}
    return [*found, Line("seconds by stage", ", ".join(f"{k} {v:.0f}" for k, v in sums.items()))] if rows else []
