"""The interpreter gate: one candidate on one problem, from sizes to a TestReport.

Per workload three jobs: the reference (trusted, cached per problem, workload and seed), the candidate
(confined) and the comparison (trusted). A problem without small workloads is tried at its own sizes, scaled
down, and last with a sample of the programs at its own sizes, until one of them says something; which elements
count in such a sample is the word of the candidate's process.

The outcome is tri-state. `failed` needs evidence against the candidate: a wrong value, an access outside every
tensor, an exception of its own host code, an output that is no tensor, a changed input. What the interpreter
cannot run is `not_applicable` with the reason, never a failure.

Diagnostic codes of severity `error`: `out-of-bounds`, `wrong-value`, `runtime-error`, `foreign-output`,
`input-mutated`, `no-answer`, `malformed-answer`, `kernel-without-effect`, `copy-kernel`, and what the
caller's `check` says. Races (`read-after-write-race`, `write-after-read-race`,
`write-write-race`), `device-assert` and `false-assumption` are advice.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from verifier.errors import InfrastructureError, ProblemError
from verifier.interpreter import answer as answers
from verifier.interpreter import scaling
from verifier.interpreter.limits import ENOUGH_DRAWS
from verifier.problem import LibraryPolicy, Problem, Workload
from verifier.sandbox.limits import Limits
from verifier.sandbox.outcome import JobResult
from verifier.verdict import Diagnostic, OutputCheck, TestReport

REFERENCE_PRELOAD = (
    "torch",
    "torch._dynamo",
    "verifier.interpreter.reference",
    "verifier.interpreter.compare",
)
INTERPRET_PRELOAD = ("torch", "triton", "verifier.interpreter.run")
INTERPRET_ENVIRON = {"TRITON_INTERPRET": "1"}
"""What the two zygotes preload; `TRITON_INTERPRET` must be set before Triton is imported. Dispatch modes
import `torch._dynamo` on first use, which takes 2 s.
"""

REFERENCE_JOB = "verifier.interpreter.reference:reference_job"
COMPARE_JOB = "verifier.interpreter.compare:compare_job"
INTERPRET_JOB = "verifier.interpreter.run:interpret_job"

SECONDS = 20.0
"""For all draws of one workload in the interpreter."""
TRUSTED = Limits(wall_seconds=120.0, cpu_seconds=120)
SAMPLED = Limits(wall_seconds=60.0, cpu_seconds=60, memory_bytes=12 << 30, result_bytes=2 << 30)
"""Of the reference at its own sizes; the answer holds two draws in up to three precisions."""
CACHE_BYTES = 512 << 20
_CONSTANT = (
    "the reference gives the same output for all inputs that were tried, so a kernel that computes nothing of it is "
    "right; times of this problem say nothing"
)


class Runner(Protocol):
    """What the gate needs of a `Zygote`."""

    def run(
        self,
        job: str,
        payload: Any,
        blobs: Mapping[str, bytes] = ...,
        *,
        limits: Limits = ...,
        confined: bool = ...,
    ) -> JobResult: ...


@dataclass(frozen=True, slots=True)
class Expected:
    """Result of `reference_job`: `value` with the specs, `blobs` with inputs, weights and expected values."""

    workload: Workload
    sampled: bool
    value: dict[str, Any]
    blobs: dict[str, bytes]


Check = Callable[[Expected, list[Any]], Diagnostic | None]
"""Looks at what the candidate did in a run that passed: an error fails the test, a warning makes it not
applicable."""


class References:
    """Expected values by (problem, sizes, seed), least recently used out first. Thread-safe; lives on the
    trusted side.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[Any, Expected] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Expected | None:
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
            return found

    def put(self, key: Any, expected: Expected) -> None:
        with self._lock:
            self._held[key] = expected
            while len(self._held) > 1 and self._bytes() > self.max_bytes:
                self._held.popitem(last=False)

    def _bytes(self) -> int:
        return sum(len(b) for e in self._held.values() for b in e.blobs.values())


@dataclass(frozen=True)
class Zygotes:
    """`compile`: without TRITON_INTERPRET, runs trusted jobs here. `interpret`: started with
    INTERPRET_ENVIRON. `build`: has compilers, for native code of files that run live; None where that waits for their
    visit.
    """

    compile: Runner
    interpret: Runner
    build: Runner | None = None
    references: References = field(default_factory=References)


@dataclass(frozen=True, slots=True)
class _Trial:
    """One workload: what was found, and why nothing was. `final`: other sizes would not help."""

    outcome: Literal["passed", "failed", "not_applicable"]
    reason: str = ""
    workload: str = ""
    scaling: str = ""
    checks: tuple[OutputCheck, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    findings: tuple[Diagnostic, ...] = ()
    traffic: tuple[Any, ...] = ()
    precision: str | None = None
    final: bool = False


def run_gate(
    problem: Problem, source: str, zygotes: Zygotes, seed: int, *, check: Check | None = None, spoil: bool = False,
    target: str = "h200", compiled: Mapping[str, Any] | None = None, few: bool = False,
) -> TestReport:  # fmt: skip
    """Tests `source` (which must have been traced before) on `problem`. `seed` is secret and is the judge's.

    `check` has a last look at a run that passed; `spoil` also asks whether anything comes of the kernels. `compiled`:
    what `traced.figures` says of the plan's kernels, for files that ask a compiled kernel how many registers it takes.
    `few`: what is right on two distributions passes; what is not is tried on all, for its report. Raises ProblemError
    when the reference itself cannot run, InfrastructureError when a trusted job dies.
    """
    start = time.perf_counter()
    trials: list[_Trial] = []
    for sizes in scaling.choose(problem):
        if sizes.sampled and any(t.final for t in trials):
            break
        trial = _try(problem, source, zygotes, seed, replace(sizes, few=few), check, spoil, target, compiled or {})
        if few and any(f.code == "wrong-value" for f in trial.findings):
            trial = _try(problem, source, zygotes, seed, sizes, check, spoil, target, compiled or {})
        trials.append(trial)
        if trial.outcome == "failed" or (trial.outcome == "passed" and not scaling.has_small(problem)):
            break
    return _report(trials, time.perf_counter() - start)


def run_reference(problem: Problem, zygotes: Zygotes, seed: int, *, few: bool = False) -> None:
    """Runs the reference on the first sizes that the gate would use, and keeps what it gave.

    Raises ProblemError when it cannot run, InfrastructureError when the trusted job dies.
    """
    first = next(iter(scaling.choose(problem)), None)
    if first is not None:
        _expected(problem, zygotes, seed, replace(first, few=few))


def _report(trials: list[_Trial], seconds: float) -> TestReport:
    """One report: the first failure, else what passed, else every reason."""
    chosen = [t for t in trials if t.outcome == "failed"] or [t for t in trials if t.outcome == "passed"]
    used = chosen or trials
    reasons = dict.fromkeys(f"{t.scaling}: {t.reason}" if len(used) > 1 else t.reason for t in used if t.reason)
    return TestReport(
        outcome=chosen[0].outcome if chosen else "not_applicable",
        basis="interpreter",
        reason="; ".join(reasons),
        workloads=tuple(t.workload for t in chosen),
        scaling="; ".join(dict.fromkeys(t.scaling for t in chosen)),
        checks=tuple(c for t in chosen for c in t.checks),
        skipped_draws={k: v for t in chosen for k, v in t.skipped.items()},
        findings=tuple(f for t in used for f in t.findings),
        traffic=chosen[0].traffic if chosen else (),
        precision=next((t.precision for t in chosen if t.precision), None),
        seconds=seconds,
    )


def _try(
    problem: Problem, source: str, zygotes: Zygotes, seed: int, sizes: scaling.Sizes, check: Check | None, spoil: bool,
    target: str, compiled: Mapping[str, Any],
) -> _Trial:  # fmt: skip
    expected = _expected(problem, zygotes, seed, sizes)
    if isinstance(expected, _Trial):
        return expected
    changed = expected.workload.constants if sizes.changed else {}
    described = scaling.describe(sizes.scaling, changed)
    trial = _run(problem, source, zygotes, expected, described, check, spoil, target, compiled)
    if trial.outcome == "failed" and sizes.changed:
        crashed = any(f.code == "runtime-error" for f in trial.findings)
        if crashed or scaling.names_a_size(source, sizes.changed):
            reason = f"fails at sizes that it may not be made for ({trial.reason})"
            return _Trial("not_applicable", reason, scaling=described)
    return trial


def _expected(problem: Problem, zygotes: Zygotes, seed: int, sizes: scaling.Sizes) -> Expected | _Trial:
    """Expected values for the first version that fits, or why there is none."""
    versions = [w.model_dump(mode="json") for w in sizes.versions]
    key = (problem.id, json.dumps(versions, sort_keys=True), sizes.draws, seed)
    if (held := zygotes.references.get(key)) is not None:
        return held
    limits = SAMPLED if sizes.sampled else TRUSTED
    payload = {
        "problem": problem.model_dump(mode="json"),
        "workloads": versions,
        "seed": seed,
        "max_bytes": list(sizes.max_bytes),
        "draws": sizes.draws,
        "sampled": sizes.sampled,
        "answer_bytes": limits.result_bytes,
    }
    result = zygotes.compile.run(REFERENCE_JOB, payload, limits=limits, confined=False)
    if result.outcome in ("timeout", "memory"):
        what = "time" if result.outcome == "timeout" else "memory"
        return _Trial("not_applicable", f"the reference takes too much {what} on a CPU", scaling=sizes.scaling)
    if result.outcome != "ok":
        raise InfrastructureError(f"the reference job ended with {result.outcome}: {result.error}")
    value = result.value
    if value["status"] == "error" and not sizes.changed:
        raise ProblemError(value["message"], file=problem.file, line=value["line"])
    if value["status"] != "ok":
        final = value["status"] == "stochastic"
        return _Trial("not_applicable", str(value["reason"]), scaling=sizes.scaling, final=final)
    if not value["draws"]:
        reason = "the reference takes no distribution: " + "; ".join(f"{k}: {v}" for k, v in value["skipped"].items())
        return _Trial("not_applicable", reason, scaling=sizes.scaling)
    expected = Expected(Workload.model_validate(value["workload"]), sizes.sampled, value, result.blobs)
    zygotes.references.put(key, expected)
    return expected


def _run(
    problem: Problem, source: str, zygotes: Zygotes, expected: Expected, described: str,
    check: Check | None, spoil: bool, target: str, compiled: Mapping[str, Any],
) -> _Trial:  # fmt: skip
    name = expected.workload.name
    result = _interpret(source, zygotes, expected, spoil, target, compiled)
    if result.outcome != "ok":
        return _died(result, name, described)
    said = answers.parse(result.value)
    if isinstance(said, str):
        return _failure("malformed-answer", said, None, source, name, described)
    if said.status == "failed":
        return _failure(said.code, said.reason, said.line, source, name, described, said.diagnostics(source))
    partial = said.status == "not_applicable"
    if partial and said.code != "too-slow":
        return _undecided(said, source, name, described)
    if not said.launches and problem.library is not LibraryPolicy.ALLOWED:
        return _Trial("not_applicable", "no Triton kernel ran in the interpreter", name, described, final=True)
    if expected.sampled:
        described = scaling.describe_sample(said.sampled, said.programs)
    trial = _judge(problem, source, zygotes, expected, said, result.blobs, described)
    return trial if trial.outcome != "passed" else _last_look(trial, expected, said, check)


def _last_look(trial: _Trial, expected: Expected, said: answers.Answer, check: Check | None) -> _Trial:
    """A run with right values, unless its kernels had no part in them or it does something else when traced."""
    found: Diagnostic | None = None
    if said.without_effect:
        message = "the outputs stay the same when everything that the custom kernels store is changed"
        found = Diagnostic(severity="error", code="kernel-without-effect", message=message)
    elif said.only_copies:
        message = "the custom kernels only store what they load; library operators compute"
        found = Diagnostic(severity="error", code="copy-kernel", message=message)
    elif check is not None:
        found = check(expected, said.calls)
    if found is None:
        return trial
    outcome: Literal["failed", "not_applicable"] = "failed" if found.severity == "error" else "not_applicable"
    checks = trial.checks if outcome == "failed" else ()
    return replace(trial, outcome=outcome, reason=found.message, checks=checks, findings=(found, *trial.findings))


def _undecided(said: answers.Answer, source: str, name: str, described: str) -> _Trial:
    """A run that the interpreter or a sample could not finish. An access outside every tensor before a sample
    was refused is evidence all the same.
    """
    findings = said.diagnostics(source)
    errors = [f for f in findings if f.severity == "error"]
    if said.code == "not-sampled" and errors:
        return _Trial("failed", errors[0].message, name, described, findings=findings)
    final = said.code == "unsupported"
    return _Trial("not_applicable", said.reason, name, described, findings=findings, final=final)


def _interpret(
    source: str, zygotes: Zygotes, expected: Expected, spoil: bool, target: str, compiled: Mapping[str, Any]
) -> JobResult:
    value = expected.value
    draws = [{"prefix": f"d{i}", "name": d["name"], "inputs": d["inputs"]} for i, d in enumerate(value["draws"])]
    if (probe := value["probe"]) is not None:
        draws.append({"prefix": "probe", "name": "probe", "inputs": probe["inputs"], "state": probe["state"]})
    sample = {"programs": scaling.PROGRAMS, "seed": str(value["programs_seed"])} if expected.sampled else None
    payload = {
        "source": source, "class": "ModelNew", "init": value["init"], "init_seed": value["init_seed"],
        "state": value["state"], "draws": draws, "seconds": SECONDS,
        "sample": sample, "spoil": spoil, "target": target, "compiled": compiled,
    }  # fmt: skip
    given = {"init", "state", "in"}
    blobs = {k: b for k, b in expected.blobs.items() if given & set(k.split("/"))}
    limits = Limits(wall_seconds=SECONDS + 15, cpu_seconds=int(SECONDS) + 15)
    return zygotes.interpret.run(INTERPRET_JOB, payload, blobs, limits=limits, confined=True)


def _died(result: JobResult, name: str, described: str) -> _Trial:
    """The candidate's process gave no answer."""
    if result.outcome == "timeout":
        return _Trial("not_applicable", "the interpreter did not finish in time", name, described)
    if result.outcome == "memory":
        return _Trial("not_applicable", "the interpreter ran out of memory", name, described)
    if result.outcome == "crash" and "signal" in result.error:
        return _Trial("not_applicable", f"the interpreter's process was {result.error}", name, described)
    return _failure("no-answer", f"the candidate's process ended: {result.error[-500:]}", None, "", name, described)


def _failure(
    code: str, reason: str, line: int | None, source: str, name: str, described: str,
    others: tuple[Diagnostic, ...] = (),
) -> _Trial:  # fmt: skip
    found = Diagnostic(severity="error", code=code, message=reason, line=line, excerpt=answers.excerpt(source, line))
    return _Trial("failed", reason, name, described, findings=(found, *others))


def _judge(
    problem: Problem, source: str, zygotes: Zygotes, expected: Expected, said: answers.Answer,
    outputs: Mapping[str, bytes], described: str,
) -> _Trial:  # fmt: skip
    """Compares in a trusted job and puts the evidence together."""
    name = expected.workload.name
    done = {i: d for i, d in enumerate(expected.value["draws"]) if f"d{i}" in said.outputs}
    compared = compare(problem, zygotes, expected, said.outputs, outputs, done)
    checks = tuple(OutputCheck(**c) for c in compared["checks"])
    findings = [*value_findings(checks), *mutations(expected, said.mutated, done)]
    findings += said.diagnostics(source)
    if expected.value["constant"]:
        findings.append(Diagnostic(severity="warning", code="constant-reference", message=_CONSTANT))
    errors = [f for f in findings if f.severity == "error"]
    skipped = dict(expected.value["skipped"])
    missing = {d["name"] for i, d in enumerate(expected.value["draws"]) if i not in done}
    skipped |= dict.fromkeys(sorted(missing), "the interpreter ran out of time")
    reason = errors[0].message if errors else ""
    outcome: Literal["passed", "failed", "not_applicable"] = "failed" if errors else "passed"
    if not errors and compared["unseen"]:
        outcome, reason, checks = "not_applicable", compared["unseen"][0], ()
    elif not errors and missing and len(done) < ENOUGH_DRAWS:
        outcome, reason, checks = "not_applicable", said.reason or "the interpreter ran out of time", ()
    precision = compared["precision"] or _least(said.dots)
    return _Trial(
        outcome, reason, name, described, checks, skipped, tuple(findings), said.traffic_lines(), precision
    )  # fmt: skip


def compare(
    problem: Problem, zygotes: Zygotes, expected: Expected, specs: Mapping[str, Any],
    outputs: Mapping[str, bytes], done: Mapping[int, dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """What `compare_job` says of the outputs of the draws `done`; `specs` by prefix. Raises InfrastructureError."""
    draws = [{**d, "prefix": f"d{i}", "output": specs[f"d{i}"]} for i, d in done.items()]
    probe = expected.value["probe"]
    if probe is not None and "probe" in specs:
        probe = {**probe, "output": specs["probe"]}
    payload = {
        "workload": expected.workload.name, "precision": str(problem.precision), "draws": draws,
        "probe": probe, "sampled": expected.sampled,
    }  # fmt: skip
    theirs = {k: b for k, b in outputs.items() if k.split("/")[1:2] in (["out"], ["mask"])}
    result = zygotes.compile.run(
        COMPARE_JOB, payload, {**theirs, **expected.blobs}, limits=TRUSTED, confined=False
    )  # fmt: skip
    if result.outcome != "ok":
        raise InfrastructureError(f"the comparison ended with {result.outcome}: {result.error}")
    return dict(result.value)


def value_findings(checks: tuple[OutputCheck, ...]) -> list[Diagnostic]:
    """One diagnostic for all wrong outputs: the first in full, the draws that fail by name."""
    wrong = [c for c in checks if not c.passed]
    if not wrong:
        return []
    draws = list(dict.fromkeys(c.draw for c in wrong))
    total = len({c.draw for c in checks})
    first = wrong[0]
    message = (
        f"output {first.output} is wrong on {len(draws)} of {total} input distributions "
        f"({', '.join(draws)}); on `{first.draw}`: {first.reason}"
    )
    return [Diagnostic(severity="error", code="wrong-value", message=message, count=len(wrong))]


def mutations(
    expected: Expected, mutated: Mapping[str, list[int]], done: Mapping[int, dict[str, Any]]
) -> list[Diagnostic]:  # fmt: skip
    """An input tensor that is changed, by draw, where the reference leaves it as it is."""
    for i, draw in done.items():
        extra = sorted(set(mutated.get(f"d{i}", [])) - set(draw["mutated"]))
        if extra:
            message = f"input tensor {extra[0]} is changed in place; the reference leaves it as it is"
            return [Diagnostic(severity="error", code="input-mutated", message=message)]
    return []


def _least(dots: list[str]) -> str | None:
    """Least precise operand class among the products that ran."""
    names = {"bf16": "bf16", "fp16": "fp16", "tf32": "tf32", "fp32": "fp32", "fp64": "fp32"}
    classes = {"fp8" if d.startswith("fp8") else names.get(d) for d in dots}
    return next((c for c in ("fp8", "bf16", "fp16", "tf32", "fp32") if c in classes), None)
