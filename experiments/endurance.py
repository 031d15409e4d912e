"""Thousands of traces in a row through one warm server: how fast, how much memory, and is anything left behind?

    python -m experiments.endurance PACKED --traces 5000 --at-once 16 [--light 5] [--out endurance.json]

PACKED is a folder of answers that `python -m experiments.fidelity pack` made; they are traced in turn, as the judge
traces them, until the count is reached. Looked at before and after: processes, descriptors, temporary files, shared
memory, and the memory of the server and of this process. The exit code is 1 if anything is left. `/dev/shm` belongs to
all: what others leave there meanwhile counts too.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.fidelity.pack import Entry, answer_of, problem_of, read_index
from experiments.fidelity.table import quantile
from experiments.fidelity.trace import inspector
from verifier.baseline import TRACE_JOB
from verifier.errors import ProblemError, WarpsmithError
from verifier.judge import COMPILE_PRELOAD
from verifier.sandbox.watch import children, private_bytes
from verifier.sandbox.zygote import Zygote
from verifier.traced import TRACE
from verifier.verdict import Record

GROWTH = 32 << 20
"""Memory that a process may gain after its first traces, bytes."""


class Held(Record):
    """What a moment holds."""

    processes: int
    """Descendants of this process."""
    descriptors: int
    """Open in this process and its descendants."""
    files: frozenset[str]
    """All in the folder for temporary files, and in /dev/shm."""
    own_bytes: int
    """Private memory of this process."""
    server_bytes: int
    """Private memory of its descendants together."""


class Result(Record):
    """Figures of a run. Seconds are wall seconds of a job unless they say otherwise."""

    traces: int
    outcomes: dict[str, int]
    wall_seconds: float
    cpu_seconds: float
    """Of all jobs."""
    at_once: int
    cores: int
    median_seconds: float
    p90_seconds: float
    peak_bytes_median: int
    """Largest resident memory of a job, what it shares with the server included."""
    peak_bytes_most: int
    server_bytes: tuple[int, int]
    """Private memory of the server after the first traces and after the last."""
    left: tuple[str, ...]

    @property
    def per_core_hour(self) -> float:
        """Traces per hour of CPU time."""
        return 3600 * self.traces / self.cpu_seconds if self.cpu_seconds else 0.0


def held() -> Held:
    """Now, once this process has collected its garbage."""
    gc.collect()
    family = descendants(os.getpid())
    shared = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm")] if os.path.isdir("/dev/shm") else []
    ours = os.listdir(tempfile.gettempdir())
    return Held(
        processes=len(family),
        descriptors=sum(map(_descriptors, (os.getpid(), *family))),
        files=frozenset((*shared, *ours)),
        own_bytes=private_bytes(os.getpid()),
        server_bytes=sum(map(private_bytes, family)),
    )


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """A fresh folder for this process's temporary files, so that what is left there is ours."""
    before = tempfile.gettempdir()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def descendants(pid: int) -> list[int]:
    """Children of a process and their children, by `/proc`."""
    found: list[int] = []
    for one in children(pid):
        found += [one, *descendants(one)]
    return found


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _cpu_of_ended(pids: Sequence[int]) -> float:
    """CPU seconds of the children that these processes have waited for."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
    return total


def leftovers(before: Held, after: Held) -> list[str]:
    """A sentence for each thing that there is more of."""
    told = []
    for what in ("processes", "descriptors"):
        more = getattr(after, what) - getattr(before, what)
        if more > 0:
            told.append(f"{more} {what} more than before")
    if new := sorted(after.files - before.files):
        told.append(f"{len(new)} files are left: {', '.join(new[:5])}")
    for what, name in (("own_bytes", "this process"), ("server_bytes", "the server")):
        grown = getattr(after, what) - getattr(before, what)
        if grown > GROWTH:
            told.append(f"{name} has grown by {grown >> 20} MiB")
    return told


class _Endurance:
    """Traces answers in turn, several at once."""

    def __init__(self, packed: Path, entries: Sequence[Entry], zygote: Zygote, light: float) -> None:
        self._packed, self._entries, self._zygote, self._light = packed, entries, zygote, light
        self._inspect = inspector(zygote)
        self._lock = threading.Lock()
        self._heavy: set[str] = set()
        self.seconds: list[float] = []
        self.peaks: list[int] = []
        self.outcomes: Counter[str] = Counter()

    def turns(self, threads: ThreadPoolExecutor) -> Iterator[tuple[Entry, dict[str, Any]]]:
        """Answers with what the trace wants to know, again and again, those over the limit once."""
        known = [found for found in threads.map(self._known, self._entries) if found is not None]
        while fresh := [found for found in known if found[0].id not in self._heavy]:
            yield from fresh

    def _known(self, entry: Entry) -> tuple[Entry, dict[str, Any]] | None:
        try:
            problem = problem_of(self._packed, entry)
            return entry, {"name": problem.workloads[0].name, **self._inspect(problem)}
        except ProblemError as error:
            print(f"{entry.names[0]}: left out: {error}", file=sys.stderr)
            return None

    def trace(self, entry: Entry, workload: dict[str, Any]) -> None:
        source = answer_of(self._packed, entry).path.read_text(encoding="utf-8", errors="replace")
        payload = {"source": source, "filename": "candidate.py", "class": "ModelNew", "target": "sm_90a",
                   "workloads": [workload]}  # fmt: skip
        job = self._zygote.run(TRACE_JOB, payload, limits=TRACE)
        with self._lock:
            self.seconds.append(job.seconds)
            self.peaks.append(job.peak_bytes)
            self.outcomes[str(job.value["status"]) if job.outcome == "ok" else job.outcome] += 1
            if job.seconds > self._light:
                self._heavy.add(entry.id)


def run(packed: Path, traces: int, at_once: int, light: float = float("inf"), seconds: float = float("inf")) -> Result:
    """Traces and looks at what is left, once with the server warm and once without it. Raises WarpsmithError.

    `light`: seconds of a trace above which an answer is traced only once; `seconds`: none is begun after that time.
    """
    end = time.monotonic() + seconds
    entries, cold = read_index(packed), held()
    with Zygote(preload=COMPILE_PRELOAD) as zygote, ThreadPoolExecutor(at_once) as threads:
        work = _Endurance(packed, entries, zygote, light)
        turns = work.turns(threads)
        first = min(2 * at_once, traces)
        _all(threads, work, turns, first, float("inf"))
        warm = held()
        servers = [zygote.server_pid, *descendants(zygote.server_pid)]
        spent, begin, counted = _cpu_of_ended(servers), time.monotonic(), len(work.seconds)
        _all(threads, work, turns, traces - first, end)
        wall, spent = time.monotonic() - begin, _cpu_of_ended(servers) - spent
        after = held()
    left = [*leftovers(warm, after), *(f"after the end: {what}" for what in leftovers(cold, held()))]
    return _result(work, counted, wall, spent, at_once, (warm, after), left)


def _all(
    threads: ThreadPoolExecutor,
    work: _Endurance,
    turns: Iterator[tuple[Entry, dict[str, Any]]],
    count: int,
    end: float,
) -> None:
    """Waits for `count` traces, or for those begun until `end`; at most two for each thread are submitted ahead."""
    room = threading.Semaphore(2 * threads._max_workers)
    made = []
    for _, turn in zip(range(count), turns, strict=False):
        room.acquire()
        if time.monotonic() > end:
            break
        made.append(threads.submit(work.trace, *turn))
        made[-1].add_done_callback(lambda _: room.release())
    for one in made:
        one.result()


def _result(
    work: _Endurance,
    counted: int,
    wall: float,
    cpu: float,
    at_once: int,
    held: tuple[Held, Held],
    left: Sequence[str],
) -> Result:
    """Times are those of the traces after the first ones."""
    seconds = sorted(work.seconds[counted:] or work.seconds)
    return Result(
        traces=len(work.seconds) - counted,
        outcomes=dict(work.outcomes.most_common()),
        wall_seconds=wall,
        cpu_seconds=cpu,
        at_once=at_once,
        cores=len(os.sched_getaffinity(0)),
        median_seconds=statistics.median(seconds),
        p90_seconds=quantile(seconds, 9),
        peak_bytes_median=int(statistics.median(work.peaks)),
        peak_bytes_most=max(work.peaks),
        server_bytes=(held[0].server_bytes, held[1].server_bytes),
        left=tuple(left),
    )


def told(result: Result) -> str:
    """The figures as lines."""
    before, after = (size / 2**20 for size in result.server_bytes)
    hourly = 3600 * result.traces / result.wall_seconds if result.wall_seconds else 0.0
    return "\n".join((
        f"traces          {result.traces} after the first ones, {result.at_once} at once on {result.cores} cores, "
        f"{result.wall_seconds:.0f} s",
        f"outcomes        {', '.join(f'{n} {name}' for name, n in result.outcomes.items())}",
        f"per hour        {hourly:.0f}; per core-hour of CPU time {result.per_core_hour:.0f}",
        f"seconds         median {result.median_seconds:.2f}, p90 {result.p90_seconds:.2f}",
        f"memory of a job median {result.peak_bytes_median / 2**20:.0f} MiB, most {result.peak_bytes_most / 2**20:.0f} "
        "MiB, pages shared with the server included",
        f"server          {before:.1f} MiB of private memory after the first traces, {after:.1f} MiB after the last",
        f"left behind     {'; '.join(result.left) or 'nothing'}",
    ))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.endurance", description=about)
    add = parser.add_argument
    add("packed", type=Path, metavar="PACKED", help="a folder that `experiments.fidelity pack` made")
    add("--traces", type=int, default=5000, metavar="N", help="traces in all (5000)")
    add("--at-once", type=int, default=len(os.sched_getaffinity(0)), metavar="W", help="jobs at once (one a core)")
    add("--light", type=float, default=float("inf"), metavar="S", help="trace answers that take longer only once")
    add("--minutes", type=float, default=float("inf"), metavar="M", help="begin none after so long")
    add("--out", type=Path, metavar="FILE", help="the figures as JSON")
    chosen = parser.parse_args(arguments)
    try:
        with own_temporary_folder():
            result = run(chosen.packed, chosen.traces, chosen.at_once, chosen.light, 60 * chosen.minutes)
    except WarpsmithError as error:
        print(f"error: {error}\n{error.next_step}".rstrip(), file=sys.stderr)
        return error.exit_code
    if chosen.out is not None:
        chosen.out.write_text(result.model_dump_json(indent=1))
    print(told(result))
    return 1 if result.left else 0


if __name__ == "__main__":
    sys.exit(main())
