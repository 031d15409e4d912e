"""The half with a GPU: traces packed answers on the CPU cores while others run on the GPU, and compares.

Per answer: a trace in the sandbox; a direct run in a child; the replay of its plans in another child. Finished answers
go to `rows.jsonl` at once, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import os
import queue
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.fidelity.cases import Case, Direct, read_replays
from experiments.fidelity.pack import PLANS, Entry, answer_of, problem_of, read_index
from experiments.fidelity.plans import PlanFile
from experiments.fidelity.trace import Row, inspector, trace
from experiments.fidelity.workers import Children
from verifier.errors import WarpsmithError
from verifier.judge import COMPILE_PRELOAD
from verifier.sandbox.zygote import Zygote

ROWS = "rows.jsonl"
DIRECT, REPLAY = "experiments.fidelity.direct:direct", "experiments.fidelity.replay:replay"
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Options:
    """How much of the machine to use. Defaults suit 16 cores and one GPU with 141 GB."""

    slots: int = 4
    """Answers on the GPU at once."""
    tracers: int = 11
    seconds: float = 450.0
    """No answer is begun after this."""
    direct_seconds: float = 60.0
    replay_seconds: float = 45.0
    memory_bytes: int = 125 * _GIB
    """Of the GPU, for all children together."""
    device: str = "cuda"


@dataclass(frozen=True, slots=True)
class _Ready:
    """A traced answer that waits for the GPU."""

    entry: Entry
    row: Row
    folder: Path
    memory_bytes: int


def run(packed: Path, out: Path, options: Options, only: Sequence[str] = ()) -> list[Case]:
    """Cases of all packed answers, those in `out` as they are. `only`: ids. Raises WarpsmithError."""
    out.mkdir(parents=True, exist_ok=True)
    done = {case.id: case for case in read_cases(out)}
    waiting = [e for e in read_index(packed) if e.id not in done and (not only or e.id in only)]
    write_cases(out, done.values())
    if waiting:
        with _Session(packed, out, options) as session:
            for case in session.cases(_ordered(waiting)):
                done[case.id] = case
    return list(done.values())


def read_cases(out: Path) -> list[Case]:
    """Cases of an output folder, none when there is no file; a last line without an end was cut off by a kill."""
    path = out / ROWS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Case.model_validate_json(line) for line in lines if line.endswith("\n")]


def write_cases(out: Path, cases: Iterable[Case]) -> None:
    (out / ROWS).write_text("".join(case.model_dump_json() + "\n" for case in cases))


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    """Answers that ran for their author or may have, shuffled so that any beginning is a sample; then the others."""
    shuffled = sorted(entries, key=lambda e: e.id)
    random.Random(0).shuffle(shuffled)
    return sorted(shuffled, key=lambda e: e.recorded == "failed")


class _Session:
    """Tracers and GPU slots over one queue."""

    def __init__(self, packed: Path, out: Path, options: Options) -> None:
        self._packed, self._out, self._options = packed, out, options
        self._carried = PlanFile(packed / PLANS).names()
        self._zygote = Zygote(preload=COMPILE_PRELOAD)
        self._end = time.monotonic() + options.seconds
        self._room = _Room(options.memory_bytes)

    def __enter__(self) -> _Session:
        self._scratch = Path(tempfile.mkdtemp(prefix="fidelity-", dir=_fast_folder()))
        os.environ["TRITON_CACHE_DIR"] = str(self._scratch / "triton")  # of the direct runs; traces have their own
        self._children = Children()
        self._zygote.start()
        self._inspect = inspector(self._zygote)
        return self

    def __exit__(self, *exception: object) -> None:
        self._zygote.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def cases(self, entries: Sequence[Entry]) -> Iterator[Case]:
        """Cases as they finish, each written first. Answers that were not begun in time are left out."""
        ready: queue.SimpleQueue[_Ready | None] = queue.SimpleQueue()
        finished: queue.SimpleQueue[Case | BaseException | None] = queue.SimpleQueue()
        o = self._options
        with ThreadPoolExecutor(o.tracers) as tracers, ThreadPoolExecutor(o.slots) as slots:
            traces = [tracers.submit(self._trace, entry, ready) for entry in entries]
            for _ in range(o.slots):
                slots.submit(self._serve, ready, finished)
            closing = threading.Thread(target=_close, args=(traces, ready, finished, o.slots))
            closing.start()
            stop = threading.Timer(self._end - time.monotonic(), self._zygote.close)  # ends the traces that still run
            stop.start()
            try:
                yield from self._written(finished, len(entries))
            finally:
                self._end = 0.0
                stop.cancel()
                self._zygote.close()
                closing.join()

    def _trace(self, entry: Entry, ready: queue.SimpleQueue[_Ready | None]) -> None:
        if time.monotonic() > self._end:
            return
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        row, size = self._traced(entry, folder)
        ready.put(_Ready(entry, row.model_copy(update={"folder": entry.folder, "file": entry.file}), folder, size))

    def _traced(self, entry: Entry, folder: Path) -> tuple[Row, int]:
        answer = answer_of(self._packed, entry)
        try:
            problem = problem_of(self._packed, entry)
            workload = self._inspect(problem)
            row, job = trace(self._zygote, answer, problem, workload)
        except WarpsmithError as error:
            why: dict[str, Any] = {"status": "problem", "kind": "ours", "message": str(error)[:500]}
            return Row(folder=entry.folder, file=entry.file, problem=entry.problem, **why), 0
        if row.kind == "traced":
            PlanFile(folder / PLANS).add(entry.id, job.value["plan"], job.blobs)
        return row, _memory(workload)

    def _serve(
        self, ready: queue.SimpleQueue[_Ready | None], finished: queue.SimpleQueue[Case | BaseException | None]
    ) -> None:
        """One GPU slot: until a None comes."""
        while (one := ready.get()) is not None:
            try:
                if (case := self._case(one)) is not None:
                    finished.put(case)
            except BaseException as error:  # noqa: BLE001 - raised again where the cases are read
                finished.put(error)
            finally:
                shutil.rmtree(one.folder, ignore_errors=True)
        finished.put(None)

    def _case(self, one: _Ready) -> Case | None:
        with self._room.taken(one.memory_bytes):
            case = self._measured(one)
        if case is not None and _short_of_memory(case):
            with self._room.taken(self._options.memory_bytes):
                case = self._measured(one)
        return case

    def _measured(self, one: _Ready) -> Case | None:
        """None when the session's time is up before the answer's."""
        o, entry = self._options, one.entry
        shared = {"problem": str((self._packed / "problems" / f"{entry.source}.py").resolve()),
                  "name": entry.problem, "device": o.device}  # fmt: skip
        answer = str((self._packed / "answers" / f"{entry.answer}.py").resolve())
        direct = self._child(DIRECT, one.folder, {**shared, "answer": answer}, o.direct_seconds)
        plans = {"here": str(one.folder / PLANS)} if one.row.kind == "traced" else {}
        if entry.id in self._carried:
            plans["carried"] = str((self._packed / PLANS).resolve())
        replays = {}
        if plans and direct is not None:
            report = self._child(REPLAY, one.folder, {**shared, "id": entry.id, "plans": plans}, o.replay_seconds)
            replays = read_replays(report, plans) if report else {}
        if direct is None or time.monotonic() >= self._end:
            return None
        return Case(id=entry.id, names=entry.names, recorded=entry.recorded, trace=one.row,
                    direct=Direct.model_validate(direct), replays=replays)  # fmt: skip

    def _child(self, job: str, folder: Path, payload: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        left = self._end - time.monotonic()
        return self._children.run(job, folder, payload, min(seconds, left)) if left > 0 else None

    def _written(self, finished: queue.SimpleQueue[Case | BaseException | None], total: int) -> Iterator[Case]:
        open_slots, number = self._options.slots, 0
        with (self._out / ROWS).open("a") as file:
            while open_slots:
                case = finished.get()
                if case is None:
                    open_slots -= 1
                    continue
                if isinstance(case, BaseException):
                    raise case
                file.write(case.model_dump_json() + "\n")
                file.flush()
                number += 1
                print(f"{number}/{total} {_line(case)}", file=sys.stderr, flush=True)
                yield case


class _Room:
    """Bytes of GPU memory that answers hold at once."""

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Waits until `size`, at most all, is free."""
        size = min(size, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


def _close(
    traces: Sequence[Future[None]],
    ready: queue.SimpleQueue[_Ready | None],
    finished: queue.SimpleQueue[Case | BaseException | None],
    slots: int,
) -> None:
    """Tells the slots when the last trace has ended."""
    for made in traces:
        if (fault := made.exception()) is not None:
            finished.put(fault)
    for _ in range(slots):
        ready.put(None)


def _memory(workload: Any) -> int:
    """A guess: six times the inputs and 4 GiB for weights, intermediates and libraries."""
    return 6 * sum(_bytes(spec) for spec in workload["inputs"]) + 4 * _GIB


def _bytes(spec: Any) -> int:
    if spec["kind"] == "tensor":
        size = 1
        for n in spec["shape"]:
            size *= n
        return 4 * size
    items = spec.get("items", ())
    return sum(_bytes(s) for s in (items.values() if isinstance(items, dict) else items))


def _short_of_memory(case: Case) -> bool:
    messages = [case.direct.message if case.direct else "", *(r.message for r in case.replays.values())]
    return any("out of memory" in message for message in messages)


def _fast_folder() -> str | None:
    """Shared memory where at least 16 GiB of it is free: whole outputs pass through this folder."""
    place = Path("/dev/shm")
    return str(place) if place.is_dir() and shutil.disk_usage(place).free >= 16 * _GIB else None


def _line(case: Case) -> str:
    told = [f"{label} {r.status}{'' if r.equal is None else ' equal' if r.equal else ' differs'}"
            for label, r in case.replays.items()]  # fmt: skip
    direct = f"direct {case.direct.status}" if case.direct else "no direct run"
    return f"{case.names[0]}: trace {case.trace.status}, {direct}, {', '.join(told) or 'no plan'}"
