"""Verdicts on published answers beside what direct runs of the same files gave.

The answers and their problems come packed (`python -m experiments.fidelity pack`); the truth is a JSON object whose
`results` map MODEL_PROBLEM to `exc` (what was raised), or `shape`, `close` (allclose at 1e-2) and `err` of the direct
run. Each answer is traced here, the interpreter looks at it, and the GPU judges whatever the interpreter said: both are
in the row, and the verdict is what the two make together. What gave no verdict among others, for example because
the host's memory was full, is tried again alone.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from experiments.fidelity.pack import Entry, answer_of, problem_of, read_index
from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row, say
from experiments.figures.throughput import UNTESTED
from verifier.candidate import Candidate
from verifier.errors import InfrastructureError, ProblemError, UsageError
from verifier.gpu.bench import GpuBench
from verifier.gpu.supervisor import GpuWorker
from verifier.judge import Judge

SECONDS = 540.0


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """Raises UsageError without --packed and --truth."""
    packed, truth = lab.options.packed, lab.options.truth
    if packed is None or truth is None:
        raise UsageError("published answers need --packed and --truth")
    known: Mapping[str, Any] = json.loads(truth.read_text())["results"]
    entries = {key: e for e in read_index(packed) if (key := _key(e, known)) and not book.has(key=key)}
    chosen = list(entries.items())[: lab.options.count]
    say(f"{len(entries)} of {len(known)} answers have no row yet")
    waiting: list[str] = []

    def add(key: str, row: Row) -> None:
        book.add(key=key, direct=direct(known[key]), direct_says=_says(known[key]), **row)

    with lab.worker() as worker, ThreadPoolExecutor(lab.options.cores) as pool:
        work = {pool.submit(_judged, lab, worker, packed, entry, clock): key for key, entry in chosen}
        for future in as_completed(work):
            key = work[future]
            row = future.result()
            if row is not None and row["status"] == "none":
                waiting.append(key)
            elif row is not None:
                add(key, row)
        for key in waiting:
            if (row := _judged(lab, worker, packed, entries[key], clock)) is not None:
                add(key, row)


def _key(entry: Entry, known: Mapping[str, Any]) -> str | None:
    """The answer's name in the truth: its folder ends in the model."""
    number = entry.problem.rpartition("/")[2]
    for name in entry.names:
        for model in {key.rpartition("_")[0] for key in known}:
            if name.partition("/")[0].endswith(model) and f"{model}_{number}" in known:
                return f"{model}_{number}"
    return None


def direct(found: Mapping[str, Any]) -> str:
    """right, wrong or failed."""
    if "exc" in found:
        return "failed"
    return "right" if found.get("shape") and found.get("close") else "wrong"


def _says(found: Mapping[str, Any]) -> str:
    if "exc" in found:
        return re.sub(r"\s+", " ", str(found["exc"]))[:200]
    return f"shape {found.get('shape')}, close {found.get('close')}, error {found.get('err')}"


def _judged(lab: Lab, worker: GpuWorker, packed: Path, entry: Entry, clock: Clock) -> Row | None:
    """None where the clock has run out."""
    if clock.left < 0:
        return None
    start = time.perf_counter()
    try:
        row = _verdict(lab, worker, packed, entry)
    except (ProblemError, InfrastructureError) as error:
        row = {"status": "none", "reason": str(error)[:300]}
    return {"problem": entry.problem, **row, "wall": time.perf_counter() - start}


def _verdict(lab: Lab, worker: GpuWorker, packed: Path, entry: Entry) -> Row:
    problem = problem_of(packed, entry)
    judge = Judge(problem, lab.zygotes, seed=SEED, measured=True)
    candidate = Candidate(source=answer_of(packed, entry).path.read_text(errors="replace"))
    stage = judge.compile(candidate)
    if stage.status is not None:
        return {"status": str(stage.status), "reason": stage.reason[:300], "interpreter": "", "gpu": ""}
    gate = judge.test(stage)
    visited = GpuBench(problem, SEED, worker=worker).visit(stage, UNTESTED)
    test = visited if gate.undecided else gate
    verdict = judge.verdict(candidate, stage, test, None)
    worst = max((c.error for c in visited.report.checks if c.error is not None), default=None)
    return {
        "status": str(verdict.status), "reason": verdict.reason[:300],
        "interpreter": f"{gate.report.outcome}: {gate.reason or gate.report.reason}"[:200],
        "gpu": str(visited.status or visited.report.outcome), "gpu_says": visited.reason[:300], "error": worst,
        "gpu_seconds": visited.seconds.get("gpu check", 0.0) + visited.seconds.get("gpu time", 0.0),
        "timed": len(visited.timings),
    }  # fmt: skip


def agrees(row: Row) -> bool:
    return (row["status"] == "correct") is (row["direct"] == "right")


def lines(rows: Sequence[Row]) -> list[Line]:
    """Counts by verdict and direct result, then every difference."""
    if not rows:
        return []
    found = [Line(f"agree, of {len(rows)}", str(sum(map(agrees, rows))), "every difference explained")]
    counts = Counter((r["status"], r["direct"]) for r in rows)
    for status in sorted({r["status"] for r in rows}):
        said = ", ".join(f"{counts[status, how]} {how}" for how in ("right", "wrong", "failed") if counts[status, how])
        found.append(Line(f"verdict {status}, direct runs", said))
    for row in rows:
        if not agrees(row):
            ours = f"{row['status']}: {row['reason']} [interpreter {row.get('interpreter')}; GPU {row.get('gpu')}]"
            found.append(Line(row["key"], f"{ours} | direct: {row['direct']}, {row['direct_says']}"))
    return found
