"""Confirmed times on one GPU alone and while another GPU of the machine judges all the time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row, Traced
from experiments.figures.kernels import FAMILIES
from experiments.figures.spread import CASES, judged, result
from verifier.gpu.supervisor import GpuWorker

SECONDS = 120.0
COUNT = 3
HOWS = ("alone", "busy")


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """Turns of alone and busy alternate, so that warming up is no difference. The GPUs are 0 and 1."""
    small = 256 if lab.options.small else None
    traced = {name: lab.trace(FAMILIES[name].problem(name, small), FAMILIES[name].source) for name in CASES}
    book.clear()
    with lab.worker("0") as ours, lab.worker("1") as other:
        for worker in (ours, other):
            judged(worker, traced["relu"], 0)
        for turn in range(lab.options.count or COUNT):
            for how in HOWS:
                with _busy(other, traced["relu"], how == "busy") as visits:
                    for name in CASES:
                        if clock.left < 0:
                            return
                        book.add(case=name, turn=turn, how=how, **result(judged(ours, traced[name], turn)))
                if how == "busy":
                    book.add(case="neighbour", turn=turn, how=how, visits=len(visits), speedup=None)


@contextmanager
def _busy(worker: GpuWorker, item: Traced, wanted: bool) -> Iterator[list[int]]:
    """Visits to another GPU one after the other while the block runs; the list counts them."""
    visits: list[int] = []
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            judged(worker, item, SEED + len(visits))
            visits.append(len(visits))

    thread = threading.Thread(target=loop)
    if wanted:
        thread.start()
    try:
        yield visits
    finally:
        stop.set()
        if wanted:
            thread.join()


def lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    for name in CASES:
        seconds = {
            how: [r["candidate_seconds"] for r in rows if r["case"] == name and r["how"] == how and r["speedup"]]
            for how in HOWS
        }
        if not all(seconds.values()):
            continue
        alone, busy = (median(seconds[how]) for how in HOWS)
        said = f"{busy / alone:.4f}: {1e3 * busy:.4f} ms against {1e3 * alone:.4f} ms, {len(seconds['busy'])} each"
        found.append(Line(f"{name}, beside a busy GPU over alone", said, "1"))
        spread = max(max(v) / min(v) for v in seconds.values()) - 1
        found.append(Line(f"{name}, spread of either", f"{100 * spread:.2f}%"))
    visits = sum(r["visits"] for r in rows if r["case"] == "neighbour")
    return [*found, Line("visits to the neighbour meanwhile", str(visits))] if found else []
