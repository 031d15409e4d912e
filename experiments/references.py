"""Does the judge take PyTorch itself? Every KernelBench reference as a candidate, with library calls allowed.

    python -m experiments.references CHECKOUT [--level 2] [--only level1/19 level2/66] [--out references.json]
    python -m experiments.references CHECKOUT --gpu --out references.json   # correctness on the GPU of this machine too

A reference computes by definition what it must compute, so whatever the judge says against one is the judge's fault,
or has a reason in the file: it is random, its plan would depend on values, it does not fit the device. Each file is
traced in a sandbox as candidates are, its plan is read strictly and audited, and a row goes to the results at once: a
run that was stopped goes on where it was.

With a judge its verdicts stand in the rows. References are traced side by side; a GPU judges one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from experiments.fidelity.answers import Answer
from experiments.fidelity.trace import Inspect, inspector, trace
from experiments.figures.base import SEED
from experiments.figures.throughput import UNTESTED
from experiments.kernelbench import PREFIX, level_folders, load_kernelbench, problem_files
from verifier.candidate import Candidate
from verifier.errors import InfrastructureError, ProblemError, WarpsmithError
from verifier.gpu.bench import GpuBench
from verifier.gpu.supervisor import GpuWorker
from verifier.interpreter.gate import Runner, Zygotes
from verifier.judge import Judge, open_zygotes
from verifier.plan.arguments import DescriptorArg, PointerArg, values_in
from verifier.plan.audit import audit
from verifier.plan.reader import read_plan
from verifier.plan.schema import AtenStep, LaunchStep, Program
from verifier.problem import LibraryPolicy, Problem
from verifier.target import get_target
from verifier.verdict import Record

Outcome = Literal["traced", "stochastic", "too large", "format", "refused"]
"""`format`: the file cannot be read as a problem, or its arguments cannot be described; `refused`: no plan."""

GpuJudge = Callable[[Problem, Candidate], tuple[str, str]]
"""Gives a status and one sentence."""
TARGET = "h200"


class Reference(Record):
    """What became of one reference. Bytes are of device memory; times in seconds."""

    problem: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    """Wall time of the trace."""
    plan_bytes: int = 0
    """Of the plan as JSON; a plan of library steps has no blobs."""
    steps: int = 0
    """Library steps of forward."""
    peak_bytes: int = 0
    """Most that one run holds at once, in the task's own dtypes."""
    objections: tuple[str, ...] = ()
    """Codes of the audit's errors."""
    status: str | None = None
    """Of the verdict, where a judge was asked."""
    verdict: str = ""


def as_candidate(problem: Problem) -> Candidate:
    """The problem's own file, whose class goes by the candidate's name too."""
    return Candidate(source=f"{problem.source.rstrip()}\n\n\nModelNew = Model\n")


def allowing(problem: Problem) -> Problem:
    """The problem with library calls allowed, as the reference as a candidate needs it."""
    return problem.model_copy(update={"library": LibraryPolicy.ALLOWED})


def examine(zygote: Runner, inspect: Inspect, problem: Problem, folder: Path) -> Reference:
    """Traces one reference. Needs a folder for the candidate's file."""
    problem = allowing(problem)
    file = folder / "candidate.py"
    file.write_text(as_candidate(problem).source, encoding="utf-8")
    try:
        workload = inspect(problem)
    except ProblemError as error:
        return Reference(problem=problem.name, outcome="format", reason=str(error))
    row, job = trace(zygote, Answer(path=file, folder="references", problem=problem.name), problem, workload)
    if row.kind != "traced":
        return Reference(
            problem=problem.name, outcome="refused", reason=f"{row.status}: {row.message}", seconds=row.seconds
        )
    plan = read_plan(job.value["plan"], job.blobs)
    errors = [f for f in audit(plan, problem, as_candidate(problem).source, job.blobs) if f.severity == "error"]
    outcome, reason = _decided(plan.programs[0])
    return Reference(
        problem=problem.name,
        outcome=outcome,
        reason=reason or "; ".join(dict.fromkeys(f.message for f in errors)),
        seconds=row.seconds,
        plan_bytes=len(json.dumps(job.value["plan"])),
        steps=len(plan.programs[0].library()),
        peak_bytes=peak_bytes(plan.programs[0]),
        objections=tuple(dict.fromkeys(f.code for f in errors)),
    )


def _decided(program: Program) -> tuple[Outcome, str]:
    random = [step.op for step in program.library() if step.role == "random"]
    if random:
        return "stochastic", f"`{random[0]}` draws random numbers"
    peak, memory = peak_bytes(program), get_target(TARGET).total_memory
    if peak > memory:
        return "too large", f"one run holds {peak / 2**30:.0f} GiB, the device has {memory / 2**30:.0f}"
    return "traced", ""


def peak_bytes(program: Program) -> int:
    """Device memory of one run when each buffer of forward is freed after its last use. What an operator uses inside is
    not counted."""
    sizes = {i: s.bytes for i, s in enumerate(program.storages) if s.device == "cuda"}
    passing = {i for i in sizes if program.storages[i].origin == "forward"}
    passing -= {program.values[v].storage for v in program.output_values()}
    used = [_storages(program, step) for step in program.forward]
    last = {i: at for at, touched in enumerate(used) for i in touched & passing}
    held = peak = sum(size for i, size in sizes.items() if i not in passing)
    seen: set[int] = set()
    for at, touched in enumerate(used):
        new = (touched & passing) - seen
        seen |= new
        held += sum(sizes[i] for i in new)
        peak = max(peak, held)
        held -= sum(sizes[i] for i in touched & passing if last[i] == at)
    return peak


def _storages(program: Program, step: AtenStep | LaunchStep) -> set[int]:
    if isinstance(step, AtenStep):
        given = [v for a in (*step.args, *step.kwargs.values()) for v in values_in(a)]
        return {program.values[v].storage for v in (*given, *step.outputs, *step.mutates)}
    return {a.storage for a in step.args if isinstance(a, PointerArg | DescriptorArg)}


# -- the whole run -----------------------------------------------------------------------------------


def named(checkout: Path, levels: Sequence[int], only: Sequence[str]) -> list[str]:
    """Names of the wanted problems, in order. Raises UsageError."""
    if only:
        return [f"{PREFIX}{name.removeprefix(PREFIX)}" for name in only]
    folders = level_folders(checkout)
    return [f"{PREFIX}level{n}/{number}" for n in levels for number in sorted(problem_files(folders, n))]


def measure(
    zygote: Runner, names: Sequence[str], checkout: Path, known: Mapping[str, Reference],
    judge: GpuJudge | None = None, *, at_once: int = 1,
) -> Iterator[Reference]:  # fmt: skip
    """Rows of all names in order, those in `known` as they are. `judge` is asked about every reference that is traced.

    `zygote` must be running and preload COMPILE_PRELOAD. Raises WarpsmithError.
    """
    inspect = inspector(zygote)

    def row_of(name: str) -> Reference:
        row = known.get(name)
        if row is not None and (judge is None or row.status is not None):
            return row
        try:
            problem = load_kernelbench(name, checkout)
        except ProblemError as error:
            return Reference(problem=name, outcome="format", reason=str(error))
        if row is None:
            with tempfile.TemporaryDirectory() as folder:
                row = examine(zygote, inspect, problem, Path(folder))
        return _judged(row, problem, judge) if judge and row.outcome == "traced" else row

    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(row_of, names)


def _judged(row: Reference, problem: Problem, judge: GpuJudge) -> Reference:
    status, reason = judge(allowing(problem), as_candidate(problem))
    return row.model_copy(update={"status": status, "verdict": reason})


@contextmanager
def gpu_judge(zygotes: Zygotes) -> Iterator[GpuJudge]:
    """Correctness on the GPU of this machine; nothing is timed."""
    with GpuWorker() as worker:

        def judge(problem: Problem, candidate: Candidate) -> tuple[str, str]:
            try:
                cpu = Judge(problem, zygotes, seed=SEED, measured=True)
                stage = cpu.compile(candidate)
                if stage.status is not None:
                    return str(stage.status), stage.reason
                untimed = stage.model_copy(update={"handle": replace(stage.handle, base=None)})
                test = GpuBench(problem, SEED, worker=worker).visit(untimed, UNTESTED)
            except (InfrastructureError, ProblemError) as error:
                return "none", str(error)
            if test.report.basis != "gpu":
                return "none", test.report.findings[-1].message
            verdict = cpu.verdict(candidate, stage, test, None)
            return str(verdict.status), verdict.reason

        yield judge


def read_rows(path: Path | None) -> dict[str, Reference]:
    """Rows by problem; none when there is no file."""
    if path is None or not path.exists():
        return {}
    rows = [Reference.model_validate(row) for row in json.loads(path.read_text())]
    return {row.problem: row for row in rows}


def write_rows(path: Path, rows: Mapping[str, Reference]) -> None:
    """The whole file at once, so that a stopped run leaves the old or the new one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps([row.model_dump(mode="json") for row in rows.values()], indent=1))
    os.replace(part, path)


def show(rows: Sequence[Reference]) -> None:
    """A line for each reference, then the counts."""
    table = Table("reference", "outcome", "trace s", "steps", "plan KiB", "peak GiB", "verdict", "reason")
    for row in rows:
        size = f"{row.plan_bytes / 1024:.0f}"
        peak = f"{row.peak_bytes / 2**30:.2f}"
        reason = row.verdict or row.reason
        table.add_row(
            row.problem.removeprefix(PREFIX), row.outcome, f"{row.seconds:.2f}", str(row.steps), size, peak,
            row.status or "", reason,
        )  # fmt: skip
    console = Console(width=160)
    console.print(table)
    console.print(", ".join(f"{n} {what}" for what, n in Counter(row.outcome for row in rows).most_common()))
    objections = Counter(code for row in rows for code in row.objections)
    if objections:
        console.print("the audit objects:", ", ".join(f"{n} {code}" for code, n in objections.most_common()))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.references", description=str(__doc__).split("\n")[0])
    parser.add_argument("checkout", type=Path, help="of KernelBench")
    parser.add_argument("--level", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="level1/19")
    parser.add_argument("--out", type=Path, help="results as JSON; rows that it has are not made again")
    parser.add_argument("--gpu", action="store_true", help="judge them on the GPU of this machine")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, metavar="N", help="traces at once")
    asked = parser.parse_args(argv)
    rows: dict[str, Reference] = {}
    kept = read_rows(asked.out)
    try:
        names = named(asked.checkout, asked.level, asked.only)
        with ExitStack() as opened:
            zygotes = opened.enter_context(open_zygotes())
            judge = opened.enter_context(gpu_judge(zygotes)) if asked.gpu else None
            for row in measure(zygotes.compile, names, asked.checkout, kept, judge, at_once=asked.at_once):
                rows[row.problem] = row
                if asked.out:
                    write_rows(asked.out, kept | rows)
                print(f"{len(rows)}/{len(names)} {row.problem}: {row.outcome}", file=sys.stderr)
    except WarpsmithError as error:
        print(error, file=sys.stderr)
        return 2
    show(list(rows.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
