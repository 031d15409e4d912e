"""Whether the plan of the tested workload gives right results by itself: `replayed.py` in a confined job, then the
comparison of the test.

Weights that start with one value everywhere (a norm's scale of ones, a bias of zeros) hide whether anything uses them.
Where the file holds all of them by the reference's names, the plan also runs with others; elsewhere they are what the
file makes of them, and nothing is asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from verifier.interpreter.gate import SECONDS, Expected, Zygotes, compare, mutations, value_findings
from verifier.problem import Problem
from verifier.sandbox.limits import Limits
from verifier.verdict import Diagnostic, OutputCheck

REPLAY_JOB = "verifier.interpreter.replayed:replay_job"
_WEIGHTS = "weights"
"""Name of the draw with other weights."""
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
    problem: Problem, zygotes: Zygotes, expected: Expected, plan: Mapping[str, Any], blobs: Mapping[str, bytes],
    held: object = None,
) -> Diagnostic | None:  # fmt: skip
    """An error where the plan of the tested workload is wrong, a warning where it cannot be replayed, else None.

    `plan` is one that `read_plan` has read; `held` is what the trace says of the file's weights, by name. Raises
    InfrastructureError where the comparison dies.
    """
    other = _other_weights(expected, plan, held)
    draws = dict(enumerate([*expected.value["draws"], *([] if other is None else [other])]))
    order = random.SystemRandom().sample(sorted(draws), len(draws))  # which ones are left out where time is short
    payload = {
        "plan": plan, "workload": expected.workload.name, "state": expected.value["state"],
        "init_seed": expected.value["init_seed"], "seconds": SECONDS,
        "draws": [{"prefix": f"d{i}", **{k: draws[i][k] for k in ("inputs", "state") if k in draws[i]}} for i in order],
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
        done = {i: d for i, d in draws.items() if f"d{i}" in found.outputs}
        compared = compare(problem, zygotes, expected, found.outputs, outputs, done)
        checks = tuple(OutputCheck(**c) for c in compared["checks"])
        own = tuple(c for c in checks if c.draw != _WEIGHTS)
        for wrong_one in (*value_findings(own), *mutations(expected, found.mutated, done)):
            return _fault(wrong_one.message)
        for ignored in (c for c in checks if not c.passed):
            return ignores_weights(other["state"]["items"] if other else (), ignored.reason)
    return None


def _other_weights(expected: Expected, plan: Mapping[str, Any], held: object) -> dict[str, Any] | None:
    """The draw with other weights, where the file holds them all and reads none of their values on the host."""
    draw: dict[str, Any] | None = expected.value["weights"]
    if draw is None or not isinstance(held, dict):
        return None
    shapes = {name: spec["shape"] for name, spec in draw["state"]["items"].items()}
    parameters = next(p for p in plan["programs"] if p["workload"] == expected.workload.name)["parameters"]
    fixed = any(parameters[name]["fixed"] for name in shapes if name in parameters)
    return draw if not fixed and all(held.get(name) == shape for name, shape in shapes.items()) else None


def ignores_weights(names: Iterable[str], reason: str) -> Diagnostic:
    """The error of who is wrong, for a reason, with other values of these weights."""
    told = ", ".join(f"`{name}`" for name in list(names)[:4])
    message = f"it does not compute with {told}, whose values start equal: with others {reason}"
    return Diagnostic(severity="error", code="ignores-weights", message=message)


def _fault(message: str) -> Diagnostic:
    said = f"the plan that was traced does something else than the file when it is tested: {message}"
    return Diagnostic(severity="error", code="behaves-differently", message=said)


def _unknown(reason: str) -> Diagnostic:
    said = f"the plan of the tested workload cannot be replayed on the CPU, so the test says nothing about it: {reason}"
    return Diagnostic(severity="warning", code="not-compared", message=said)
