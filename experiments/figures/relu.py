"""GPU seconds for one correct ReLU candidate on KernelBench's level1/19, and KernelBench's own harness on the file.

The worker is warm: one judgement goes before and does not count. Every judgement has a seed of its own, so nothing is
remembered. Leased is what a fleet would charge: from handing the plan over to having the verdict.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row, median_of, say
from experiments.figures.kernels import FAMILIES, RELU
from experiments.figures.throughput import parts_of
from experiments.kernelbench import load_kernelbench
from verifier.errors import UsageError
from verifier.gpu.supervisor import GpuWorker
from verifier.problem import Problem

SECONDS = 200.0
COUNT = 5
HARNESS_SECONDS = 180.0


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """Raises UsageError without a checkout."""
    options = lab.options
    if options.small:
        problem = FAMILIES["relu"].problem("relu", 4096)
    else:
        problem = load_kernelbench("kernelbench:level1/19", options.kernelbench)
    source = options.candidate.read_text() if options.candidate else RELU
    with lab.worker() as worker:
        _judge(lab, worker, problem, source, book, clock)
    if options.harness is not None and not book.has(by="harness"):
        book.add(by="harness", **_harness(options.harness, problem, source, clock))


def lines(rows: Sequence[Row]) -> list[Line]:
    ours = [r for r in rows if r["by"] == "judge" and r["turn"] > 0]
    found = []
    if ours:
        said = f"{max(r['leased'] for r in ours):.2f} s"
        found.append(Line(f"leased GPU seconds, most of {len(ours)}", said, "<= 1 s"))
        parts = ", ".join(f"{k} {median_of(ours, k):.2f} s" for k in ("check", "time", "leased"))
        found.append(Line("medians", parts))
        found += parts_of(ours)
        found.append(Line("verdicts", ", ".join(sorted({str(r["status"]) for r in ours}))))
    for row in (r for r in rows if r["by"] == "harness"):
        spent = f"{row['seconds']:.1f} s: " if "seconds" in row else ""
        found.append(Line("KernelBench's harness", spent + row["said"]))
    return found


def _judge(lab: Lab, worker: GpuWorker, problem: Problem, source: str, book: Book, clock: Clock) -> None:
    traced = lab.trace(problem, source)
    book.clear()
    for turn in range((lab.options.count or COUNT) + 1):
        if clock.left < 0:
            return
        request = traced.request(SEED + turn, timed=traced.workloads)
        start = time.perf_counter()
        visit = worker.visit(request, traced.plans())
        leased = time.perf_counter() - start
        timing = visit.timings[0].decided if visit.timings else None
        book.add(
            by="judge", turn=turn, status=str(visit.status or visit.test.outcome), reason=visit.reason, leased=leased,
            check=visit.seconds["check"], time=visit.seconds["time"], checks=len(visit.test.checks),
            parts=visit.parts,
            speedup=timing.speedup if timing else None,
            candidate_seconds=timing.candidate_seconds if timing else None,
        )  # fmt: skip


def _harness(checkout: Path, problem: Problem, source: str, clock: Clock) -> Row:
    """5 correctness and 100 timed trials in a process of its own; wall seconds of the call alone, without imports."""
    root = next((p for p in (checkout / "src", checkout) if (p / "kernelbench").is_dir()), None)
    if root is None:
        raise UsageError(f"{checkout} holds no package `kernelbench`")
    say("KernelBench's harness, 5 correctness and 100 timed trials")
    given = json.dumps({"problem": problem.source, "candidate": source})
    places = (str(root.resolve()), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    seconds = min(HARNESS_SECONDS, max(clock.left, 1.0))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.figures.harness"], input=given, env=environ, capture_output=True,
            text=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"said": f"not finished within {seconds:.0f} s"}
    last = (done.stdout.strip() or "{}").splitlines()[-1]
    if done.returncode or not last.startswith("{"):
        return {"said": f"it could not run: {done.stderr.strip()[-300:]}"}
    found: Row = json.loads(last)
    return found
