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
from experiments.figures.throughput import benches_of
from verifier.candidate import Candidate
from verifier.gpu.bench import GpuBench
from verifier.verdict import Verdict

SECONDS = 480.0


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    stream = items(lab)
    book.clear()
    with lab.worker() as worker, ThreadPoolExecutor(lab.options.cores) as pool:
        benches = benches_of(stream, worker)
        list(pool.map(lab.judge, {item.traced.problem.id: item.traced.problem for item in stream}.values()))
        start = time.perf_counter()
        running = {pool.submit(_judge, lab, benches, item, clock): item for item in stream}
        _collect(running, book, start)


def _judge(lab: Lab, benches: Mapping[str, GpuBench], item: Item, clock: Clock) -> Verdict | None:
    if clock.left < 0:
        return None
    problem = item.traced.problem
    return lab.judge(problem).judge(Candidate(source=item.source), benches[problem.name].visit)


def _collect(running: dict[Future[Verdict | None], Item], book: Book, start: float) -> None:
    for future in as_completed(running):
        item, verdict = running[future], future.result()
        if verdict is None:
            continue
        parts = {name.replace("gpu ", ""): spent for name, spent in verdict.seconds.items()}
        wall = sum(parts.values())
        book.add(
            number=item.number, problem=item.traced.problem.name, planted=item.planted, status=str(verdict.status),
            stage=str(verdict.stage), reason=verdict.reason[:200], wall=wall, at=time.perf_counter() - start,
            **{k: parts.get(k) for k in ("trace", "interpret", "profile", "check", "time")},
        )  # fmt: skip


def lines(rows: Sequence[Row]) -> list[Line]:
    found = throughput.lines(rows, ">= 3,000")
    stages = ("trace", "profile", "interpret", "check", "time")
    sums = {k: sum(r[k] or 0.0 for r in rows) for k in stages}
    return [*found, Line("seconds by stage", ", ".join(f"{k} {v:.0f}" for k, v in sums.items()))] if rows else []
