"""Verdicts per hour and GPU for a stream of traced candidates (`stock`), a third of them wrong.

One worker and a `GpuBench` for each problem over it; one candidate after the other: correctness, and time where it is
right. The candidates of one problem come in runs, as a search sends them. Tracing and the interpreter are not in it.
One visit goes before the clock starts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row, median_of
from experiments.figures.stock import Item, items, read_item
from verifier.bench import TestStage
from verifier.errors import InfrastructureError
from verifier.gpu.bench import GpuBench
from verifier.gpu.supervisor import CUDA_DEVICE, GpuWorker
from verifier.verdict import TestReport

SECONDS = 300.0
UNTESTED = TestStage(report=TestReport(outcome="not_applicable", basis="interpreter", reason="left out", seconds=0.0))
"""In place of the interpreter: the GPU decides."""
_PARTS = 24


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    stream = items(lab)
    book.clear()
    with lab.worker() as worker:
        _visit(benches_of(stream[:1], worker, SEED - 1), stream[0])
        benches = benches_of(stream, worker)
        start = time.perf_counter()
        for item in stream:
            if clock.left < 0:
                return
            began = time.perf_counter()
            found = _visited(benches, item)
            now = time.perf_counter()
            book.add(**about(item), **found, wall=now - began, at=now - start)


def benches_of(stream: Sequence[Item], worker: GpuWorker, seed: int = SEED) -> dict[str, GpuBench]:
    """One for each problem, over one worker."""
    problems = {item.traced.problem.name: item.traced.problem for item in stream}
    return {name: GpuBench(problem, seed, worker=worker) for name, problem in problems.items()}


def _visit(benches: Mapping[str, GpuBench], item: Item) -> TestStage:
    return benches[item.traced.problem.name].visit(item.traced.stage, UNTESTED)


def about(item: Item) -> Row:
    """What a row says of its candidate."""
    return {"number": item.number, "problem": item.traced.problem.name, "planted": item.planted}


class StockHost:
    """A GPU of a fleet for `experiments.fanout`: judges the traced candidates of `stock`."""

    def __init__(self, device: str, factory: str = CUDA_DEVICE, paths: Sequence[Path] = ()) -> None:
        """`device` is the CUDA_VISIBLE_DEVICES of its processes; the rest as for `GpuWorker`."""
        self._worker = GpuWorker(factory, environ={"CUDA_VISIBLE_DEVICES": device}, paths=paths)
        self._benches: dict[str, GpuBench] = {}

    def judge(self, file: str) -> str:
        """The verdict's status. Raises InfrastructureError."""
        item = read_item(Path(file))
        problem = item.traced.problem
        bench = self._benches.setdefault(problem.id, GpuBench(problem, SEED, worker=self._worker))
        test = bench.visit(item.traced.stage, UNTESTED)
        return str(test.status or test.report.outcome)

    def close(self) -> None:
        self._worker.close()


def _visited(benches: Mapping[str, GpuBench], item: Item) -> Row:
    try:
        test = _visit(benches, item)
    except InfrastructureError as error:
        return {"status": "fault", "reason": str(error)[:200]}
    decided = [t.decided for t in test.timings]
    return {
        "status": str(test.status or ("correct" if test.report.basis == "gpu" else "not judged")),
        "reason": (test.reason or test.report.reason)[:200],
        "timed": len(decided), "blocks": sum(d.blocks for d in decided),
        "in_full": [f"{c.workload} {c.draw}" for c in test.report.checks if c.passed and not c.reason],
        "check": test.seconds.get("gpu check"), "time": test.seconds.get("gpu time"), "parts": test.parts,
    }  # fmt: skip


def lines(rows: Sequence[Row], wanted: str = ">= 10,000") -> list[Line]:
    if not rows:
        return []
    last = max(r["at"] for r in rows)
    found = [
        Line("verdicts per hour", f"{3600 * len(rows) / last:,.0f}: {len(rows)} in {last:.1f} s", wanted),
        Line("verdicts", ", ".join(f"{n} {status}" for status, n in Counter(r["status"] for r in rows).most_common())),
    ]
    for name, word, group in _groups(rows):
        found.append(Line(f"{name}, {word}", f"{len(group)}: {_medians(group)}; {_parts(group)}"))
    found += parts_of(rows)
    odd = [r for r in rows if (r["status"] == "correct") is bool(r["planted"])]
    found += [
        Line(f"candidate {r['number']}, {r['problem']}", f"{r['planted'] or 'no mistake'}: {r['status']} {r['reason']}")
        for r in odd[:20]
    ]
    return found


def _groups(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """By problem: the first visits of its runs, and the later ones of right and of wrong candidates."""
    stream = sorted(rows, key=lambda r: float(r["at"]))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row, before in zip(stream, [None, *stream], strict=False):
        again = before is not None and before["problem"] == row["problem"]
        word = "first of a run" if not again else "right" if row["status"] == "correct" else "wrong"
        groups.setdefault((row["problem"], word), []).append(row)
    return [(name, word, group) for (name, word), group in sorted(groups.items())]


def parts_of(rows: Sequence[Row]) -> list[Line]:
    """Where the time of the visits went, the largest parts first, in ms a visit."""
    said = _parts(rows)
    return [Line("ms of a visit by part", said)] if said else []


def _parts(rows: Sequence[Row]) -> str:
    sums = Counter[str]()
    for row in rows:
        sums.update(row.get("parts") or {})
        if row.get("parts") and "wall" in row:
            sums["outside"] += row["wall"] - sum(row["parts"].values())
    return ", ".join(f"{name} {1e3 * spent / len(rows):.1f}" for name, spent in sums.most_common(_PARTS))


def _medians(rows: Sequence[Row]) -> str:
    known = [part for part in ("wall", "check", "time") if any(r.get(part) is not None for r in rows)]
    return ", ".join(f"{part} {1e3 * median_of(rows, part):.0f} ms" for part in known)
