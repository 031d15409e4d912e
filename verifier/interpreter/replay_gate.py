"""Whether the plan of the tested workload gives right results by itself: `replayed.py` in a confined job, then the
comparison of the test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verifier.interpreter.gate import SECONDS, Expected, Zygotes, compare, mutations, value_findings
from verifier.problem import Problem
from verifier.sandbox.limits import Limits
from verifier.verdict import Diagnostic, OutputCheck

REPLAY_JOB = "verifier.interpreter.replayed:replay_job"
_LIMITS = Limits(wall_seconds=SECONDS + 15, cpu_seconds=int(SECONDS) + 15)


class _Round(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    outputs: Annotated[dict[str, dict[str, Any]], Field(max_length=16)]
    mutated: dict[str, list[int]]


class _Answer(BaseModel):
    """Value of `replay_job`. The plan's text was the candidate's, so it is read as strictly as the interpreter's."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    status: Literal["ok", "wrong", "not_applicable"]
    reason: Annotated[str, Field(max_length=4000)]
    rounds: Annotated[list[_Round], Field(max_length=64)]


def plan_fault(
    problem: Problem, zygotes: Zygotes, expected: Expected, plan: Mapping[str, Any], blobs: Mapping[str, bytes]
) -> Diagnostic | None:
    """An error where the plan of the tested workload is wrong, a warning where it cannot be replayed, else None.

    `plan` is one that `read_plan` has read. Raises InfrastructureError where the comparison dies.
    """
    draws = dict(enumerate(expected.value["draws"]))
    payload = {
        "plan": plan, "workload": expected.workload.name, "state": expected.value["state"],
        "init_seed": expected.value["init_seed"], "seconds": SECONDS,
        "draws": [{"prefix": f"d{i}", "inputs": d["inputs"]} for i, d in draws.items()],
    }  # fmt: skip
    given = {k: b for k, b in expected.blobs.items() if {"state", "in"} & set(k.split("/"))}
    job = zygotes.compile.run(REPLAY_JOB, payload, {**blobs, **given}, limits=_LIMITS)
    if job.outcome != "ok":
        return _unknown(f"it ended with {job.outcome}: {job.error[-300:]}")
    try:
        said = _Answer.model_validate(job.value)
    except ValidationError as wrong:
        return _unknown(f"its answer is malformed: {wrong.errors()[0]['msg']}")
    if said.status == "wrong":
        return _fault(said.reason)
    if said.status == "not_applicable":
        return _unknown(said.reason)
    for number, found in enumerate(said.rounds):
        start = f"{number}/"
        outputs = {k.removeprefix(start): b for k, b in job.blobs.items() if k.startswith(start)}
        compared = compare(problem, zygotes, expected, found.outputs, outputs, draws)
        checks = tuple(OutputCheck(**c) for c in compared["checks"])
        for wrong_one in (*value_findings(checks), *mutations(expected, found.mutated, draws)):
            return _fault(wrong_one.message)
    return None


def _fault(message: str) -> Diagnostic:
    said = f"the plan that was traced does something else than the file when it is tested: {message}"
    return Diagnostic(severity="error", code="behaves-differently", message=said)


def _unknown(reason: str) -> Diagnostic:
    said = f"the plan of the tested workload cannot be replayed on the CPU, so the test says nothing about it: {reason}"
    return Diagnostic(severity="warning", code="not-compared", message=said)
