"""The half without a GPU: traces each answer as the judge does and says whose fault a refusal is.

Its plan is read strictly and audited, and its row goes to the results file at once: a run that was stopped goes on
where it was. Nothing runs on a GPU, so a row says what the trace found, not whether that is true.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from experiments.fidelity.answers import Answer, find_answers
from experiments.kernelbench import load_kernelbench
from verifier.baseline import TRACE_JOB
from verifier.errors import ProblemError
from verifier.interpreter.gate import Runner
from verifier.judge import COMPILE_PRELOAD, INSPECT_JOB
from verifier.loader import read_inspection
from verifier.plan import twice
from verifier.plan.audit import audit, library_steps
from verifier.plan.disguise import NAME, Disguise
from verifier.plan.reader import PlanError, read_plan
from verifier.problem import Problem
from verifier.sandbox.zygote import JobResult, Zygote
from verifier.traced import TRACE
from verifier.verdict import Record

Kind = Literal["traced", "candidate", "untraceable", "ours"]

_OURS = re.compile(
    r"(?i:fake (?:CUDA )?tensor|FakeTensorMode|meta tensor|not compiled with CUDA|Could not run 'aten::|"
    r"NVIDIA driver|libcuda|verifier[./]|torch_dispatch__|not implemented for 'cuda')"
)
"""Words of the fake device in an exception: the candidate may be right and the disguise wrong."""


class Row(Record):
    """What the trace said of one answer."""

    folder: str
    file: str
    problem: str
    status: str
    """Of the trace: `ok`, `compile_error`, ...; `rejected` when only the audit objects, `malformed` when the plan
    cannot be read; `timeout`, `memory`, `crash` or `error` when the job gave no answer; `problem` when the
    problem's arguments cannot be had."""
    kind: Kind
    """Traced, or whose refusal it is: the candidate's own error, the method's (untraceable) or ours."""
    code: str = ""
    message: str = ""
    line: int | None = None
    seconds: float = 0.0
    """Wall seconds of the job: fork, trace, compilation and the way back."""
    launches: int = 0
    library_steps: int = 0
    twice: str = ""
    """What a second trace under another disguise found: a finding's code, or empty."""


Inspect = Callable[[Problem], Mapping[str, Any]]


def _row(zygote: Zygote, inspect: Inspect, answer: Answer, problem: Problem) -> Row:
    """Traces one answer. A problem that cannot be inspected here, for want of a module perhaps, is ours."""
    try:
        return examine(zygote, answer, problem, inspect(problem))
    except ProblemError as error:
        why = {"status": "problem", "kind": "ours", "code": "problem", "message": str(error)[:500]}
        return Row.model_validate({**_where(answer), **why})


def _where(answer: Answer) -> dict[str, str]:
    return {"folder": answer.folder, "file": answer.path.name, "problem": answer.problem}


def examine(zygote: Runner, answer: Answer, problem: Problem, workload: Mapping[str, Any]) -> Row:
    """Traces one answer, and a second time under another disguise if nothing is against it. `workload` is what
    `inspect_job` said of the problem's arguments."""
    row, job = trace(zygote, answer, problem, workload)
    if row.status != "ok":
        return row
    return row.model_copy(update={"twice": _traced_again(zygote, _payload(answer, problem, workload), job)})


def trace(zygote: Runner, answer: Answer, problem: Problem, workload: Mapping[str, Any]) -> tuple[Row, JobResult]:
    """One trace, with the job itself, whose plan and blobs are worth a look when the row is traced."""
    payload = _payload(answer, problem, workload)
    job = zygote.run(TRACE_JOB, payload, limits=TRACE)
    judged = _judged(job, problem, payload["source"])
    return Row.model_validate({**_where(answer), "seconds": job.seconds, **judged}), job


def _payload(answer: Answer, problem: Problem, workload: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "source": answer.path.read_text(encoding="utf-8", errors="replace"), "filename": "candidate.py",
        "class": "ModelNew", "target": "sm_90a", "workloads": [{"name": problem.workloads[0].name, **workload}],
    }  # fmt: skip


def _traced_again(zygote: Runner, payload: Mapping[str, Any], first: JobResult) -> str:
    """Code of the finding of a second trace, empty when the plans are equal."""

    def traced(number: int) -> twice.Outcome:
        job = zygote.run(TRACE_JOB, {**payload, "disguise": number}, limits=TRACE)
        return _outcome(job, Disguise.of(number).name)

    found = twice.compare(_outcome(first, NAME), traced(1 + secrets.randbits(62)), lambda: traced(0), payload["source"])
    if found is not None:
        print(f"traced twice: {found.message} (line {found.line})", file=sys.stderr)
    return "" if found is None else found.code


def _outcome(job: JobResult, name: str) -> twice.Outcome:
    if job.outcome == "ok" and job.value["status"] == "ok":
        return twice.Outcome(job.value["plan"], job.blobs, name)
    said = f"{job.value['status']}: {job.value['diagnostics'][0]['message']}" if job.outcome == "ok" else job.outcome
    return twice.Outcome(None, {}, name, said)


def _judged(job: JobResult, problem: Problem, source: str) -> dict[str, Any]:
    """The rest of a row. Raises nothing: an answer that nobody can read is ours."""
    if job.outcome != "ok":
        return {"status": job.outcome, "kind": "ours", "code": job.outcome, "message": job.error[:500]}
    status = str(job.value["status"])
    if status != "ok":
        first = job.value["diagnostics"][0]
        return {"status": status, "kind": kind_of(status, first), **_first(first)}
    try:
        plan = read_plan(job.value["plan"], job.blobs)
        findings = audit(plan, problem, source, job.blobs)
    except (PlanError, ValidationError) as wrong:
        return {"status": "malformed", "kind": "ours", "code": "malformed-plan", "message": str(wrong)[:500]}
    objection = next((f for f in findings if f.severity == "error"), None)
    program = plan.programs[0]
    counts = {"launches": len(program.launches()), "library_steps": sum(library_steps(program).values())}
    if objection is None:
        return {"status": "ok", "kind": "traced", **counts}
    return {"status": "rejected", "kind": "traced", **counts, **_first(objection.model_dump())}


def kind_of(status: str, first: Mapping[str, Any]) -> Kind:
    """Whose refusal it is, as far as the first diagnostic tells.

    An exception without a line of the candidate's file, or in words of the fake device, may be ours: a person
    reads it.
    """
    if status == "untraceable":
        return "untraceable"
    if status == "runtime_error" and (first["line"] is None or _OURS.search(first["message"])):
        return "ours"
    return "candidate"


def _first(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"code": found["code"], "message": found["message"][:500], "line": found["line"]}


def inspector(zygote: Runner) -> Inspect:
    """`inspect_job` on a problem's only workload, remembered. The function raises ProblemError."""
    known: dict[str, Mapping[str, Any]] = {}

    def inspect(problem: Problem) -> Mapping[str, Any]:
        if problem.id not in known:
            payload = {"problem": problem.model_dump(mode="json"), "workload": problem.workloads[0].name}
            job = zygote.run(INSPECT_JOB, payload, confined=False)
            if job.outcome != "ok":
                raise ProblemError(f"inspecting it: {job.outcome}: {job.error[:300]}", file=problem.file)
            value = read_inspection(job.value)
            known[problem.id] = {key: value[key] for key in ("init", "init_kwargs", "inputs")}
        return known[problem.id]

    return inspect


def run(folders: Sequence[Path], checkout: Path, out: Path) -> list[Row]:
    """Rows of all answers, those in `out` as they are and the others traced now. Raises WarpsmithError."""
    rows = {(row.folder, row.file): row for row in read_rows(out)}
    waiting = [a for f in folders for a in find_answers(f) if (a.folder, a.path.name) not in rows]
    if waiting:
        with Zygote(preload=COMPILE_PRELOAD) as zygote:
            inspect = inspector(zygote)
            for number, answer in enumerate(waiting, 1):
                row = _row(zygote, inspect, answer, load_kernelbench(answer.problem, checkout))
                rows[row.folder, row.file] = row
                write_rows(out, rows.values())
                print(f"{number}/{len(waiting)} {row.folder} {row.file}: {row.status}", file=sys.stderr)
    names = {f.name for f in folders}
    return [row for row in rows.values() if row.folder in names]


def read_rows(out: Path) -> list[Row]:
    """Rows of a results file; none when there is no file."""
    if not out.exists():
        return []
    return [Row.model_validate(row) for row in json.loads(out.read_text())["rows"]]


def write_rows(out: Path, rows: Iterable[Row]) -> None:
    """The whole file at once, so that a stopped run leaves the old or the new one."""
    versions = {name: version(name) for name in ("torch", "triton")}
    value = {"target": "sm_90a", "versions": versions, "rows": [row.model_dump(mode="json") for row in rows]}
    part = out.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1))
    os.replace(part, out)
