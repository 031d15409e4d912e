"""What every figure is given and gives."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Protocol, Self

from verifier.bench import CompileStage
from verifier.candidate import Candidate
from verifier.errors import UsageError
from verifier.gpu.bench import plans_of
from verifier.gpu.supervisor import CUDA_DEVICE, GpuWorker, Plans
from verifier.gpu.visit import Request
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge, open_zygotes
from verifier.kept import Kept
from verifier.problem import Problem

SEED = 20260101
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What a person chose. Paths are None where they were not given."""

    out: Path
    kernelbench: Path | None = None
    candidate: Path | None = None
    """A ReLU candidate for level1/19."""
    harness: Path | None = None
    """A checkout of KernelBench whose own harness judges that candidate too."""
    packed: Path | None = None
    """Published answers as `experiments.fidelity pack` packs them."""
    truth: Path | None = None
    """What direct runs of them gave."""
    stock: Path | None = None
    """Folder of traced candidates; DIR/stock unless given."""
    problems: tuple[str, ...] = ()
    """Problems of the mix, all of it unless given."""
    count: int | None = None
    """Measurements of a figure, in place of its own number."""
    cores: int = 16
    small: bool = False
    """Tiny sizes: to try the scripts."""
    device: str = CUDA_DEVICE
    paths: tuple[Path, ...] = ()
    """Import roots of `device`."""


class Clock:
    """The seconds that a figure may take."""

    def __init__(self, seconds: float) -> None:
        self._start, self._seconds = time.monotonic(), seconds

    @property
    def spent(self) -> float:
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        return self._seconds - self.spent


class Book:
    """Rows of one figure, each on disk as soon as it is made."""

    def __init__(self, path: Path) -> None:
        """A last line that a kill cut off is left out."""
        self._path = path
        self.rows: list[Row] = []
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            try:
                self.rows.append(json.loads(line))
            except ValueError:
                continue
        if text and not text.endswith("\n"):
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, **row: Any) -> None:
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        say(f"{self._path.stem} {len(self.rows)}: " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()))

    def clear(self) -> None:
        """Begins anew, for rows that belong to one uninterrupted run."""
        self.rows.clear()
        self._path.unlink(missing_ok=True)

    def has(self, **keys: Any) -> bool:
        return any(all(row.get(k) == v for k, v in keys.items()) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the last table."""

    what: str
    value: str
    wanted: str = ""


class Figure(Protocol):
    """A module of this package."""

    SECONDS: float
    """Its cap where none is given."""

    def measure(self, lab: Lab, book: Book, clock: Clock) -> None:
        """Adds rows until it has enough of them or the clock has run out. Raises WarpsmithError."""
        ...

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """What the rows say."""
        ...


@dataclass(frozen=True, slots=True)
class Traced:
    """A candidate that compiled."""

    problem: Problem
    stage: CompileStage

    @property
    def kept(self) -> Kept:
        kept: Kept = self.stage.handle
        return kept

    def plans(self) -> Plans:
        """With the problem's base."""
        return plans_of(self.kept)

    def against_itself(self) -> Plans:
        return Plans(self.kept.plan_json, self.kept.blobs, self.kept.plan_json, self.kept.blobs)

    def request(self, seed: int, **changes: Any) -> Request:
        """A visit that checks everything and times nothing, with changes."""
        return Request(**{"problem": self.problem, "seed": seed, "workloads": self.workloads, **changes})

    @property
    def workloads(self) -> tuple[str, ...]:
        return tuple(p.workload for p in self.kept.plan.programs)


class Lab:
    """Warm sandboxes for all figures of a run, and whatever else they share."""

    def __init__(self, options: Options, zygotes: Zygotes | None = None) -> None:
        self.options = options
        self._stack = ExitStack()
        self._zygotes = zygotes
        self._lock = threading.Lock()
        self._judges: dict[str, Judge] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def zygotes(self) -> Zygotes:
        """Started on first use."""
        with self._lock:
            if self._zygotes is None:
                say("starting the sandboxes")
                self._zygotes = self._stack.enter_context(open_zygotes())
            return self._zygotes

    def judge(self, problem: Problem) -> Judge:
        """A prepared judge of traces for a GPU. Raises ProblemError."""
        if problem.id not in self._judges:
            self._judges[problem.id] = Judge(problem, self.zygotes, seed=SEED, measured=True)
            self._judges[problem.id].prepare()
        return self._judges[problem.id]

    def trace(self, problem: Problem, source: str) -> Traced:
        """Raises UsageError where the candidate does not compile."""
        stage = self.judge(problem).compile(Candidate(source=source))
        if stage.status is not None:
            raise UsageError(f"the candidate for {problem.name} is {stage.status}: {stage.reason}")
        return Traced(problem, stage)

    @contextmanager
    def worker(self, gpu: str | None = None) -> Iterator[GpuWorker]:
        """New processes on the device; `gpu` chooses one of several by its CUDA_VISIBLE_DEVICES."""
        environ = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        with GpuWorker(self.options.device, paths=self.options.paths, environ=environ) as worker:
            yield worker


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def median_of(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """NaN where there is none."""
    known: list[float] = [r[key] for r in rows if r.get(key) is not None]
    return median(known or [float("nan")])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:120]
