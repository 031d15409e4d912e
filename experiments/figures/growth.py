"""Memory and open descriptors of supervisor, judge and runner, and memory of the device, over many visits in a row.

The visits turn through a right candidate, a wrong one and, every tenth time, a timed one; every seed is new.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from experiments.figures.base import SEED, Book, Clock, Lab, Line, Row, Traced
from experiments.figures.kernels import FAMILIES, MATMUL, RELU, WRONG
from verifier.gpu.supervisor import GpuWorker

SECONDS = 300.0
COUNT = 1000
PARTS = ("supervisor", "judge", "runner")
_MIB = 1 << 20


def measure(lab: Lab, book: Book, clock: Clock) -> None:
    """A row before the first visit, after every tenth part of them and after the last."""
    small = lab.options.small
    relu, matmul = (
        FAMILIES["relu"].problem("relu", 256 if small else 1 << 22),
        FAMILIES["matmul"].problem("matmul", 256 if small else 1024),
    )
    plans = [lab.trace(relu, RELU), lab.trace(matmul, MATMUL), lab.trace(relu, WRONG)]
    count = lab.options.count or COUNT
    book.clear()
    with lab.worker() as worker:
        book.add(visits=0, lost=0, **usage(worker))
        lost = done = 0
        while done < count and clock.left > 0:
            lost += _visit(worker, plans[done % 3], done)
            done += 1
            if done % max(count // 10, 1) == 0:
                book.add(visits=done, lost=lost, seconds=clock.spent, **usage(worker))
        if book.rows[-1]["visits"] != done:
            book.add(visits=done, lost=lost, seconds=clock.spent, **usage(worker))


def _visit(worker: GpuWorker, item: Traced, number: int) -> bool:
    """Whether the runner was lost."""
    timed = item.workloads if number % 10 == 0 else ()
    draws = None if number % 10 == 0 else ("task", "normal")
    return worker.visit(item.request(SEED + number, timed=timed, draws=draws), item.plans()).runner_lost


def usage(worker: GpuWorker) -> Row:
    """Resident bytes and descriptors of each process, None where they cannot be read; used bytes of the device."""
    pids = {"supervisor": [os.getpid()], **worker.pids()}
    found: Row = {"device": device_bytes()}
    for part in PARTS:
        for pid in pids[part]:
            found |= {f"{part}_bytes": resident(pid), f"{part}_files": descriptors(pid), f"{part}_pid": pid}
    return found


def resident(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def device_bytes() -> int | None:
    """As nvidia-smi says, which opens no context here; of all GPUs that it shows."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(int(text) for text in said.split()) * _MIB


def lines(rows: Sequence[Row]) -> list[Line]:
    """From the first tenth on: what is loaded on first use is no growth."""
    if len(rows) < 2:
        return []
    first, last = rows[1], rows[-1]
    found = [Line("visits", f"{last['visits']} in {last['seconds']:.0f} s, {last['lost']} runners lost")]
    for name in ("device", *(f"{part}_bytes" for part in PARTS)):
        series = ["-" if r.get(name) is None else f"{r[name] / _MIB:.0f}" for r in rows]
        if first.get(name) is not None and last.get(name) is not None:
            change = (last[name] - first[name]) / _MIB
            found.append(Line(f"{name.removesuffix('_bytes')}, MiB", f"{change:+.1f}: {' '.join(series)}", "0"))
    for part in PARTS:
        series = [str(r.get(f"{part}_files")) for r in rows]
        found.append(Line(f"{part}, descriptors", " ".join(series), "no growth"))
    return found
