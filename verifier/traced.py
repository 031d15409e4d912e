"""A candidate's source before it is traced, and what the job that traced it answered: a claim, read with care."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from verifier.plan import cuda_abi, twice
from verifier.plan.reader import PlanError, read_plan
from verifier.plan.schema import Plan
from verifier.sandbox.limits import Limits
from verifier.sandbox.outcome import JobResult
from verifier.verdict import Diagnostic, Status

TRACE = Limits(wall_seconds=300.0, cpu_seconds=240)
MAX_SOURCE_BYTES = 1 << 20
MAX_CLAIM_JSON = 4 << 20
"""Bytes of each table that a trace gives beside its plan."""
DEATHS = {"timeout": Status.TIMEOUT, "memory": Status.CRASH, "crash": Status.CRASH, "error": Status.CRASH}
"""Status by how a job ended that gave no answer."""
_Size = Annotated[int, Field(ge=0, lt=1 << 48)]


def parse(source: str) -> Diagnostic | None:
    """Why the source is no candidate, None when it may be one. Nothing runs."""
    if len(source.encode()) > MAX_SOURCE_BYTES:
        return Diagnostic(severity="error", code="too-long", message=f"the source is over {MAX_SOURCE_BYTES >> 20} MiB")
    try:
        tree = ast.parse(source.encode())  # as Python reads a file: a comment may name an encoding
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or None
        lines = source.splitlines()
        caret = " " * max((getattr(error, "offset", None) or 1) - 1, 0) + "^"
        shown = f"{lines[line - 1]}\n{caret}" if line and line <= len(lines) else ""
        text = getattr(error, "msg", None) or str(error)
        if text.startswith(("unknown encoding", "encoding problem")):
            text += "; `coding:` in a comment of the first two lines says how a file is encoded"
        return Diagnostic(
            severity="error", code="syntax-error", message=f"syntax error: {text}", line=line, excerpt=shown
        )
    if not any(_binds(node) for node in ast.walk(tree)):
        return Diagnostic(severity="error", code="no-model", message="the file defines no class `ModelNew`")
    return None


def _binds(node: ast.AST) -> bool:
    """Whether a statement gives something the name `ModelNew`."""
    if isinstance(node, ast.ClassDef):
        return node.name == "ModelNew"
    if isinstance(node, ast.Assign):
        return any(isinstance(t, ast.Name) and t.id == "ModelNew" for t in node.targets)
    return isinstance(node, ast.Import | ast.ImportFrom) and any("ModelNew" in (a.name, a.asname) for a in node.names)


def read_trace(job: JobResult) -> tuple[Status | None, tuple[Diagnostic, ...], Plan | None]:
    """Status (None for ok), findings and the checked plan. Raises PlanError or ValueError on a forged answer."""
    found = tuple(Diagnostic.model_validate(d) for d in job.value["diagnostics"])
    if job.value["status"] == "ok":
        return None, found, read_plan(job.value["plan"], job.blobs)
    status = Status(job.value["status"])
    if status in (Status.CORRECT, Status.UNTESTED):
        raise ValueError(f"a trace cannot end as {status}")
    return status, found, None


def figures(plan: Plan, blobs: Mapping[str, bytes]) -> dict[str, list[dict[str, int]]]:
    """Registers per thread, shared memory in bytes and compiler options of a plan's kernels, by name."""
    found: dict[str, list[dict[str, int]]] = {}
    for image in plan.kernels.values():
        try:
            registers = cuda_abi.read_facts(blobs[f"{image.cubin}.cubin"], image.name).registers
        except cuda_abi.CubinError:
            continue
        known = {"n_regs": registers, "shared": image.shared, "num_warps": image.num_warps}
        found.setdefault(image.name, []).append(known | {"num_stages": image.num_stages, "num_ctas": image.num_ctas})
    return found


def compilations(job: JobResult) -> dict[str, Any]:
    """What a trace says that it compiled, for a further trace of the same source."""
    return _claim(job, "compiled")


def weights(job: JobResult) -> dict[str, tuple[int, ...]]:
    """Shapes of the file's weights by name, as a trace says; none where that is no such table."""
    try:
        return TypeAdapter(dict[str, tuple[_Size, ...]]).validate_python(_claim(job, "weights"))
    except ValidationError:
        return {}


def _claim(job: JobResult, name: str) -> dict[str, Any]:
    """A table that a trace gave beside its plan; empty where it is none, or too long to be passed on."""
    said = job.value.get(name)
    return said if isinstance(said, dict) and len(json.dumps(said)) <= MAX_CLAIM_JSON else {}


def outcome(job: JobResult, name: str) -> twice.Outcome:
    """A trace as `twice` wants it. A plan that cannot be read is an end of its own."""
    try:
        status, found, plan = (DEATHS[job.outcome], (death(job),), None) if job.outcome != "ok" else read_trace(job)
    except (PlanError, ValueError, KeyError, TypeError) as forged:
        return twice.Outcome(None, {}, name, f"malformed: {forged}")
    if plan is not None:
        return twice.Outcome(job.value["plan"], job.blobs, name)
    first = next((f for f in found if f.severity == "error"), None)
    said = f"{status}: {first.message}" if first else str(status)
    return twice.Outcome(None, {}, name, said, first.line if first else None)


def death(job: JobResult) -> Diagnostic:
    """One sentence on a worker that gave no answer."""
    what = {
        "timeout": f"it did not finish within {TRACE.wall_seconds:.0f} s",
        "memory": f"it took more than {TRACE.memory_bytes >> 30} GiB of memory",
    }.get(job.outcome, f"its process ended: {job.error.strip().splitlines()[0] if job.error.strip() else 'no reason'}")
    return Diagnostic(severity="error", code=job.outcome, message=f"tracing it gave no plan: {what}")


def digest(job: JobResult) -> str:
    """SHA-256 of the plan; cubins are in it by their own digests."""
    return hashlib.sha256(json.dumps(job.value["plan"], sort_keys=True).encode()).hexdigest()
