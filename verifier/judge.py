"""The CPU half of the judge of one problem: trace, audit, static profile, interpreter gate, estimate.

The judge's own process imports neither PyTorch nor Triton and never runs a candidate. Every step is a job of a warm
zygote: the candidate's Python runs only in confined children (`trace_job`, `interpret_job`), what it made is read by
strict readers, its compiled code is looked at in another confined child, and the reference and the comparer run in
children where no candidate ever was.

Without a GPU correctness rests on Triton's interpreter and small inputs, and every time is an estimate; the verdict
says both. A `GpuBench` judges and times what passes here.
"""

from __future__ import annotations

import math
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, Literal

from verifier import traced
from verifier.baseline import TRACE_JOB, Base, Bases
from verifier.bench import CompileStage, TestStage
from verifier.candidate import Candidate
from verifier.errors import SandboxError
from verifier.gpu.contest import BUILD_JOB, BUILD_SECONDS, builder, live_limits
from verifier.gpu.replay_folder import Replay, pack_folder
from verifier.interpreter.gate import (
    INTERPRET_ENVIRON,
    INTERPRET_PRELOAD,
    REFERENCE_PRELOAD,
    Expected,
    Zygotes,
    run_gate,
    run_reference,
)
from verifier.interpreter.replay_gate import plan_fault
from verifier.kept import Kept, LiveFile, Profiled
from verifier.loader import read_inspection
from verifier.plan import twice
from verifier.plan.agreement import difference, read_calls, untested
from verifier.plan.audit import Reference, audit, library_steps, references
from verifier.plan.disguise import NAME, Disguise
from verifier.plan.effects import forward_line
from verifier.plan.live_rules import live_findings, refuse_live
from verifier.plan.reader import PlanError, read_plan
from verifier.plan.schema import Plan
from verifier.plan.textutil import clip
from verifier.plan.triton_versions import version_findings
from verifier.problem import LibraryPolicy, Problem, Role, Workload
from verifier.sandbox.limits import Limits
from verifier.sandbox.zygote import JobResult, Zygote, isolation_gaps
from verifier.target import get_target
from verifier.verdict import (
    CompileReport,
    Diagnostic,
    Estimate,
    KernelReport,
    LaunchReport,
    ProfileReport,
    Stage,
    Status,
    TestReport,
    Verdict,
)

PROFILE_JOB = "verifier.profile.job:profile_job"
REBUILD_JOB, LOWER_JOB = "verifier.plan.rebuild:rebuild_job", "verifier.plan.rebuild:lower_job"
INSPECT_JOB = "verifier.loader:inspect_job"
COMPILE_PRELOAD = (
    *REFERENCE_PRELOAD,
    "triton",
    "verifier.plan.warm",
    "verifier.interpreter.compare",
    "verifier.interpreter.replayed",
    "verifier.plan.rebuild",
    "verifier.profile.job",
)

PROFILE = Limits(wall_seconds=120.0, cpu_seconds=240)
_GATE_STATUS = {
    "out-of-bounds": Status.OUT_OF_BOUNDS,
    "runtime-error": Status.RUNTIME_ERROR,
    "no-answer": Status.CRASH,
    "malformed-answer": Status.CRASH,
    "behaves-differently": Status.REJECTED,
    "kernel-without-effect": Status.REJECTED,
    "copy-kernel": Status.REJECTED,
}
"""Status by the code of a failed gate's errors, the first that is found; any other error is a wrong result."""


@contextmanager
def open_zygotes() -> Iterator[Zygotes]:
    """Two warm servers, one with Triton's interpreter, and one that starts when there is native code to build. All end
    with the block. Raises SandboxError.
    """
    builds = builder()
    compiler = Zygote(preload=COMPILE_PRELOAD)
    interpreter = Zygote(preload=INTERPRET_PRELOAD, environ=INTERPRET_ENVIRON)
    with closing(compiler), closing(interpreter), closing(builds):
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(Zygote.start, (compiler, interpreter)))
        yield Zygotes(compile=compiler, interpret=interpreter, build=builds)


_NO_INTERPRETER = TestReport(
    outcome="not_applicable",
    basis="interpreter",
    reason="it launches CUDA C++, which Triton's interpreter cannot run",
    seconds=0.0,
)


Visit = Callable[[CompileStage, TestStage], TestStage]


class Judge:
    """Implements `Bench` for one problem. Safe from several threads.

    `seed` decides the inputs of the interpreter and stays on this side of the sandbox; a random one unless given.
    """

    def __init__(
        self,
        problem: Problem,
        zygotes: Zygotes,
        *,
        target: str = "h200",
        seed: int | None = None,
        measured: bool = False,
        figures: str | None = None,
        tuned: str | None = None,
    ) -> None:
        """`measured`: a GPU judges what passes here, so all workloads but the small ones are traced and the interpreter
        is only a first gate. `figures`: the device whose rates make estimates and advice, where it is another one than
        the target. `tuned`: digest of the kept plan of the primary baseline that was tuned on a device, None for the
        plan that a trace makes.
        """
        self.problem = problem
        self._measured = measured
        self.target = target
        self._figures = figures or target
        self._zygotes = zygotes
        self._seed = secrets.randbits(62) if seed is None else seed
        self._lock = threading.Lock()
        self._ready = False
        self._arguments: list[dict[str, Any]] | None = None
        self._base: Base | None = None
        self._eager: Base | None = None
        """What estimates are compared with: how often a compiled baseline loops may be in its data."""
        self._tuned = tuned
        self._bases = Bases(problem, target, self._run_trace)
        self._references: dict[str, Reference] = {}

    def prepare(self) -> None:
        """Inspects the reference and traces its baseline once, before anything is spent. Raises ProblemError, and
        UsageError where the tuned base is not kept any more.
        """
        with self._lock:
            if not self._ready:
                eager = self._eager = self._bases.eager(self._timed_arguments())
                self._references = {} if eager is None else references(read_plan(eager.plan, eager.blobs))
                if self._measured:
                    self._base = self._bases.primary(self._timed_arguments(), self._tuned)
                else:
                    self._base = eager
                run_reference(self.problem, self._zygotes, self._seed, few=self._measured)
                self._ready = True

    def judge(self, candidate: Candidate, visit: Visit | None = None, *further: Visit) -> Verdict:
        """All stages of one candidate, one after the other. `visit` is that of a `Device`, `further` are its `confirm`
        and `examine`, for one that was timed.
        """
        compiled = self.compile(candidate)
        test = self.test(compiled) if compiled.status is None else None
        if visit is not None and test is not None and test.undecided:
            test = visit(compiled, test)
        for look in further:
            if test is not None and test.status is None and test.timings:
                test = look(compiled, test)
        profile = self.profile(compiled, test) if test is not None and test.status is None else None
        return self.verdict(candidate, compiled, test, profile)

    def compile(self, candidate: Candidate) -> CompileStage:
        """Trace, audit and static profile. What the candidate does wrong is in the stage's status."""
        clock: dict[str, float] = {}
        with _timed(clock, "parse"):
            found = traced.parse(candidate.source)
        if found:
            return self._refused(clock, Status.UNPARSABLE, (found,))
        self.prepare()
        with _timed(clock, "trace"):
            job = self._trace(candidate.source, self._arguments or [])
        if job.outcome != "ok":
            return self._refused(clock, traced.DEATHS[job.outcome], (traced.death(job),))
        with _timed(clock, "audit"):
            status, findings, plan = self._audited(candidate, job)
        if plan is None:
            refused = self._refused(clock, status or Status.REJECTED, findings)
            live = self._measured and status is Status.UNTRACEABLE
            return self._for_live(candidate, refused) if live else refused
        if any(f.severity == "error" for f in findings):
            return self._compiled(candidate, clock, job, plan, findings, Profiled((), (), (), ()))
        with _timed(clock, "profile"), ThreadPoolExecutor(2) as beside:
            rebuilt = beside.submit(self._rebuilt, candidate.source, plan, job.blobs)
            second = beside.submit(self._second_trace, candidate.source, job)
            profiled = self._profile(job)
            findings = (*rebuilt.result(), *profiled.shortfalls, *second.result(), *findings)
        return self._compiled(candidate, clock, job, plan, findings, profiled)

    def test(self, stage: CompileStage) -> TestStage:
        """The interpreter gate."""
        if isinstance(stage.handle, LiveFile):
            reason = f"it cannot be traced: {stage.handle.reason}"
            report = TestReport(outcome="not_applicable", basis="interpreter", path="live", reason=reason, seconds=0.0)
            return TestStage(report=report, status=Status.UNTRACEABLE, reason=stage.handle.reason)
        kept: Kept = stage.handle
        report = _NO_INTERPRETER if kept.cuda else self._gate(kept)
        seconds = {"interpret": report.seconds}
        if report.outcome == "passed":
            return TestStage(report=report, seconds=seconds)
        if report.outcome == "not_applicable":
            reason = f"it compiles, but no test applies here: {report.reason}"
            return TestStage(report=report, status=Status.UNTESTED, reason=reason, seconds=seconds)
        codes = {f.code: f.message for f in reversed(report.findings) if f.severity == "error"}
        code = next((code for code in _GATE_STATUS if code in codes), "")
        status = _GATE_STATUS.get(code, Status.WRONG)
        return TestStage(report=report, status=status, reason=codes.get(code, report.reason), seconds=seconds)

    def _gate(self, kept: Kept) -> TestReport:
        unlike = cache(lambda: self._unlike_ttir(kept))  # the same for all sizes

        def check(expected: Expected, calls: list[Any]) -> Diagnostic | None:
            return None if self._measured else self._disagreement(kept, expected, calls, unlike)

        library = any(library_steps(program) for program in kept.plan.programs)
        spoil = library and self.problem.library is not LibraryPolicy.ALLOWED
        return run_gate(
            self.problem, kept.source, self._zygotes, self._seed, check=check, spoil=spoil, target=self.target,
            compiled=traced.figures(kept.plan, kept.blobs), few=self._measured,
        )  # fmt: skip

    def _tested(self, kept: Kept, expected: Expected) -> JobResult:
        """A trace of the workload that was tested."""
        value = expected.value
        workload = {
            "name": expected.workload.name, "init": value["init"]["items"], "log": True,
            "inputs": value["draws"][0]["inputs"]["items"],
        }  # fmt: skip
        return self._trace(kept.source, [workload], compiled=kept.compiled, blobs=kept.blobs)

    def _disagreement(
        self, kept: Kept, expected: Expected, calls: list[Any], unlike: Callable[[], str | None]
    ) -> Diagnostic | None:
        """Traces the workload that was tested and compares; a warning where nothing can be compared."""
        job = self._tested(kept, expected)
        try:
            if job.outcome != "ok" or job.value["status"] != "ok":
                said = job.value["diagnostics"][0]["message"] if job.outcome == "ok" else job.outcome
                message = f"the tested workload cannot be traced, so it says nothing about the plan: {said}"
                return Diagnostic(severity="warning", code="not-compared", message=message)
            small = read_plan(job.value["plan"], job.blobs)
            differs = difference(read_calls(job.value["calls"]), read_calls(calls))
        except (PlanError, ValueError, KeyError, TypeError, IndexError) as forged:
            message = f"the trace of the tested workload gave no valid plan: {forged}"
            return Diagnostic(severity="error", code="behaves-differently", message=message)
        if differs:
            return Diagnostic(severity="error", code="behaves-differently", message=differs)
        if reason := untested(kept.plan, kept.blobs, small, job.blobs) or unlike():
            return Diagnostic(severity="warning", code="not-compared", message=reason)
        if expected.sampled:  # too large to replay as a whole
            return None
        return plan_fault(self.problem, self._zygotes, expected, job.value["plan"], job.blobs, job.value.get("weights"))

    def _unlike_ttir(self, kept: Kept) -> str | None:
        """Which kernel's PTX is not known to be what its TTIR says; the test rests on the TTIR."""
        images = {key: image for key, image in kept.plan.kernels.items() if image.language == "triton"}
        with suppress(KeyError, TypeError):
            options = {(m["ptx"], m["cubin"]): m["options"] for m in kept.compiled.values()}
            payload = {
                "target": self.target, "kernels": {k: i.model_dump(mode="json") for k, i in images.items()},
                "options": {k: options[i.ptx, i.cubin] for k, i in images.items()},
            }  # fmt: skip
            job = self._zygotes.compile.run(LOWER_JOB, payload, kept.blobs, limits=traced.TRACE)
            if job.outcome != "ok":
                return f"no PTX could be made of its TTIR again: {job.error}"
            return next((f"kernel `{images[k].title}`: {job.value[k]}" for k in images if k in job.value), None)
        return "the trace does not say how its kernels were compiled"

    def profile(self, stage: CompileStage, test: TestStage) -> ProfileReport:
        """The analytic estimate and its diagnosis, and what the visit to a GPU measured where there was one. Of a file
        that ran live there is the measurement alone.
        """
        if isinstance(stage.handle, LiveFile):
            return ProfileReport(timings=test.timings)
        kept: Kept = stage.handle
        made = kept.profiled
        report = ProfileReport(
            estimates=made.estimates, timings=test.timings, diagnosis=(*test.examined, *made.diagnosis)
        )
        if test.ceilings is None or not test.steps:
            return report
        from verifier.gpu.advice import advise  # brings numpy, which a machine without a GPU need not load here

        measured, diagnosis = advise(
            kept.plan, test.steps, made.kernels, made.estimates, test.ceilings, get_target(self._figures),
            choices={t.workload: t.choice for t in test.timings}, static=made.diagnosis,
        )  # fmt: skip
        return report.model_copy(update={"measured": measured, "diagnosis": (*test.examined, *diagnosis)})

    def pack(self, stage: CompileStage, test: TestStage) -> bytes:
        """The plan as `replay_folder` packs it, for the first timed workload and inputs that are no secret."""
        kept: Kept = stage.handle
        first = self.problem.timed[0].name
        choice = next((t.choice for t in test.timings if t.workload == first), {})
        return pack_folder(
            kept.plan_json, kept.blobs, Replay(problem=self.problem, workload=first, seed=0, choice=choice)
        )

    def verdict(
        self,
        candidate: Candidate,
        compile: CompileStage,
        test: TestStage | None,
        profile: ProfileReport | None,
    ) -> Verdict:
        """Joins the stages that ran."""
        status, stage, reason = _decision(compile, test)
        score, kind = self._score(profile) if profile and status is Status.CORRECT else (None, None)
        findings = compile.report.findings if test is None else test.report.findings
        return Verdict(
            candidate=candidate.id,
            problem=self.problem.name,
            status=status,
            stage=stage,
            reason=reason,
            path="plan" if test is None else test.report.path,
            basis="none" if test is None or test.report.outcome == "not_applicable" else test.report.basis,
            score=score,
            score_kind=kind,
            diagnostics=findings,
            compile=compile.report,
            test=None if test is None else test.report,
            profile=profile,
            file=None if test is None else test.file,
            isolation=isolation_gaps() if test is None or not test.isolation else test.isolation,
            versions=versions(),
            seconds=compile.seconds | ({} if test is None else test.seconds),
        )

    def _workloads(self) -> tuple[Workload, ...]:
        """Those that are traced: the timed ones; where a GPU judges also those to check and those held out."""
        more = (*self.problem.having(Role.CHECK), *self.problem.having(Role.HELD_OUT)) if self._measured else ()
        return tuple({w.name: w for w in (*self.problem.timed, *more)}.values())

    def _inspected(self, workload: Workload) -> dict[str, Any]:
        payload = {"problem": self.problem.model_dump(mode="json"), "workload": workload.name}
        value = read_inspection(self._trusted(INSPECT_JOB, payload).value)
        return {"name": workload.name, **{key: value[key] for key in ("init", "init_kwargs", "inputs")}}

    def _trusted(self, job: str, payload: dict[str, Any]) -> JobResult:
        result = self._zygotes.compile.run(job, payload, confined=False)
        if result.outcome != "ok":
            raise SandboxError(f"the trusted job {job} ended with {result.outcome}: {result.error}")
        return result

    def _rebuilt(self, source: str, plan: Plan, blobs: Mapping[str, bytes]) -> tuple[Diagnostic, ...]:
        """Kernels whose machine code is not what their PTX or CUDA C++ makes in a process of its own."""
        payload = {"target": self.target, "kernels": {k: i.model_dump(mode="json") for k, i in plan.kernels.items()}}
        job = self._zygotes.compile.run(REBUILD_JOB, payload, blobs, limits=traced.TRACE)
        ended = f"it could not be built again: {job.error}"
        wrong = job.value if job.outcome == "ok" else dict.fromkeys(plan.kernels, ended)
        found = []
        for key in sorted(wrong, key=list(plan.kernels).index):
            message = clip(f"kernel `{plan.kernels[key].title}`: {wrong[key]}; code is judged as its compiler made it")
            line = plan.kernels[key].line or forward_line(source)
            found.append(Diagnostic(severity="error", code="other-machine-code", message=message, line=line))
        return tuple(found)

    def _second_trace(self, source: str, first: JobResult) -> tuple[Diagnostic, ...]:
        """What a trace under another disguise says that `first` does not."""
        known = traced.compilations(first)

        def again(number: int) -> twice.Outcome:
            job = self._trace(source, self._arguments or [], number, known, first.blobs)
            return traced.outcome(job, Disguise.of(number).name)

        second = again(1 + secrets.randbits(62))
        if second.ended.startswith("timeout"):  # the machine was busy: that says nothing of the file
            message = "a second trace did not end in time, so a branch on the tracer would not be seen"
            return (Diagnostic(severity="warning", code="not-compared", message=message),)
        found = twice.compare(traced.outcome(first, NAME), second, lambda: again(0), source)
        return () if found is None else (found,)

    def _trace(
        self, source: str, workloads: list[dict[str, Any]], disguise: int = 0,
        compiled: Mapping[str, Any] | None = None, blobs: Mapping[str, bytes] = MappingProxyType({}),
    ) -> JobResult:  # fmt: skip
        """`compiled` and `blobs`: of an earlier trace of the same file, whose kernels need not be compiled again."""
        payload = {
            "source": source, "filename": "candidate.py", "class": "ModelNew", "target": self.target,
            "workloads": workloads, "disguise": disguise,
        }  # fmt: skip
        if not compiled or "asm" in source:  # a file may read what the compiler makes on its way
            return self._run_trace(TRACE_JOB, payload)
        files = {name: data for name, data in blobs.items() if name.endswith((".ptx", ".cubin"))}
        return self._run_trace(TRACE_JOB, {**payload, "compiled": compiled}, files)

    def baseline(self, name: str, tuned: Mapping[str, Any] | None = None) -> Base:
        """A baseline of the problem. Raises BaselineError and ProblemError."""
        with self._lock:
            return self._bases.get(name, self._timed_arguments(), tuned)

    def _timed_arguments(self) -> list[dict[str, Any]]:
        """SPECs of the timed workloads, which come first in `_workloads`."""
        if self._arguments is None:
            self._arguments = [self._inspected(w) for w in self._workloads()]
        return self._arguments[: len(self.problem.timed)]

    def _run_trace(
        self, job: str, payload: dict[str, Any], blobs: Mapping[str, bytes] = MappingProxyType({})
    ) -> JobResult:
        return self._zygotes.compile.run(job, payload, blobs, limits=traced.TRACE)

    def _profile(self, job: JobResult) -> Profiled:
        """Static profile and estimates, made in a confined child that never loads the candidate's Python."""
        base = self._eager
        payload = {"target": self._figures, "plan": job.value["plan"], "base": base and base.plan}
        held = job.blobs | ({f"base/{name}": data for name, data in base.blobs.items()} if base else {})
        result = self._zygotes.compile.run(PROFILE_JOB, payload, held, limits=PROFILE)
        if result.outcome != "ok":
            reason = f"no static profile: {result.outcome}, {result.error.splitlines()[0] if result.error else ''}"
            return Profiled((), (), (), (Diagnostic(severity="warning", code="no-profile", message=reason),))
        return Profiled(
            kernels=tuple(KernelReport.model_validate(k) for k in result.value["kernels"]),
            launches=tuple(LaunchReport.model_validate(k) for k in result.value["launches"]),
            estimates=tuple(Estimate.model_validate(e) for e in result.value["estimates"]),
            diagnosis=tuple(Diagnostic.model_validate(d) for d in result.value["diagnosis"]),
            shortfalls=tuple(Diagnostic.model_validate(d) for d in result.value["shortfalls"]),
        )

    def _audited(
        self, candidate: Candidate, job: JobResult
    ) -> tuple[Status | None, tuple[Diagnostic, ...], Plan | None]:
        """Status (None for go on), findings and the checked plan (None where there is none)."""
        try:
            status, found, plan = traced.read_trace(job)
            if plan is not None and plan.target != get_target(self.target).arch:
                raise PlanError(f"the plan is for {plan.target}, not for {self.target}")
            found = (*found, *version_findings(candidate.source, version("triton")))
            if plan is None:
                return status, found, None
            objections = audit(plan, self.problem, candidate.source, job.blobs, self._references)
            return None, tuple(dict.fromkeys((*found, *objections))), plan
        except (PlanError, ValueError, KeyError, TypeError) as forged:
            message = f"the trace gave no valid plan: {forged}"
            return Status.REJECTED, (Diagnostic(severity="error", code="malformed-plan", message=message),), None

    def _compiled(
        self,
        candidate: Candidate,
        clock: dict[str, float],
        job: JobResult,
        plan: Plan,
        findings: tuple[Diagnostic, ...],
        profiled: Profiled,
    ) -> CompileStage:
        """The stage of a candidate with a plan: rejected by the audit, or kept for the test."""
        report = CompileReport(
            target=self.target,
            triton=version("triton"),
            plan=traced.digest(job),
            kernels=profiled.kernels,
            launches=profiled.launches,
            library_steps=library_steps(plan.programs[0]),
            findings=findings,
            base=None if self._base is None else self._base.report,
            seconds=sum(clock.values()),
        )
        errors = [f for f in findings if f.severity == "error"]
        if errors:
            return CompileStage(report=report, status=Status.REJECTED, reason=errors[0].message, seconds=clock)
        cuda = any(kernel.language == "cuda" for kernel in plan.kernels.values())
        kept = Kept(
            candidate.source, profiled, cuda, plan, job.value["plan"], job.blobs, self._base,
            traced.compilations(job), traced.weights(job),
        )  # fmt: skip
        return CompileStage(report=report, seconds=clock, handle=kept)

    def _score(self, profile: ProfileReport) -> tuple[float | None, Literal["measured", "estimate"] | None]:
        """Weighted mean over the workloads of log(base time / time), and whether the times were measured or estimated;
        None where one of them is missing.
        """
        if self._measured:
            ratios = {t.workload: (t.confirmed or t.decided).log_ratio for t in profile.timings}
        else:
            known = [e for e in profile.estimates if e.base_seconds > 0 and e.seconds > 0]
            ratios = {e.workload: math.log(e.base_seconds / e.seconds) for e in known}
        found = [(w.weight, ratios.get(w.name)) for w in self.problem.timed]
        if any(ratio is None for _, ratio in found):
            return None, None
        score = sum(weight * ratio for weight, ratio in found if ratio is not None) / sum(w for w, _ in found)
        return score, "measured" if self._measured else "estimate"

    def _for_live(self, candidate: Candidate, refused: CompileStage) -> CompileStage:
        """A file that nothing traces goes on to a live visit, where rules over its text and the policy allow that."""
        found = live_findings(candidate.source, self.problem.library)
        if why := refuse_live(self.problem.library):
            found = (Diagnostic(severity="warning", code="not-live", message=why),)
        blockers = [f.model_copy(update={"severity": "warning"}) for f in refused.report.findings]
        before = refused.report.findings if why else tuple(blockers)
        report = refused.report.model_copy(update={"findings": (*before, *found)})
        if why:
            return refused.model_copy(update={"report": report})
        if errors := [f for f in found if f.severity == "error"]:
            update = {"report": report, "status": Status.REJECTED, "reason": errors[0].message}
            return refused.model_copy(update=update)
        names = tuple(w.name for w in self._workloads())
        clock = dict(refused.seconds)
        with _timed(clock, "build"):
            built, failed = self._built(candidate.source, report.findings)
        if failed is not None:
            report = report.model_copy(update={"findings": (failed, *report.findings)})
            return CompileStage(report=report, status=Status.COMPILE_ERROR, reason=failed.message, seconds=clock)
        kept = LiveFile(candidate.source, refused.reason, names, self._base, built)
        return CompileStage(report=report, seconds=clock, handle=kept)

    def _built(self, source: str, found: tuple[Diagnostic, ...]) -> tuple[bytes, Diagnostic | None]:
        """The native code of a file that has some, where it can be built without a GPU; and why it never can be."""
        if self._zygotes.build is None or not any(f.code == "native-code" for f in found):
            return b"", None
        init = self._timed_arguments()[0]["init"]
        asked = {"architecture": get_target(self.target).arch, "init": init}
        job = self._zygotes.build.run(
            BUILD_JOB, asked, {"source": source.encode()}, limits=live_limits(BUILD_SECONDS)
        )  # fmt: skip
        failed = f"it was not built within {BUILD_SECONDS:.0f} s" if job.outcome == "timeout" else ""
        if job.outcome == "ok" and isinstance(job.value, dict):
            failed = str(job.value.get("failed", ""))
        if failed:
            message = f"its native code does not build: {failed}"
            return b"", Diagnostic(severity="error", code="build-failed", message=message)
        return job.blobs.get("built", b""), None

    def _refused(self, clock: dict[str, float], status: Status, found: tuple[Diagnostic, ...]) -> CompileStage:
        report = CompileReport(
            target=self.target, triton=version("triton"), findings=found, seconds=sum(clock.values())
        )
        first = next((f for f in found if f.severity == "error"), None)
        reason = first.message if first else str(status)
        return CompileStage(report=report, status=status, reason=reason, seconds=clock)


@contextmanager
def _timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        clock[stage] = time.perf_counter() - start


def versions() -> dict[str, str]:
    """Versions that can change a verdict."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("warpsmith", "torch", "triton")}


def _decision(compile: CompileStage, test: TestStage | None) -> tuple[Status, Stage, str]:
    """Status, the stage that decided it, and one sentence."""
    if compile.status is not None:
        stage = {Status.UNPARSABLE: Stage.PARSE, Status.REJECTED: Stage.AUDIT}.get(compile.status, Stage.COMPILE)
        return compile.status, stage, compile.reason
    if test is None:
        return Status.UNTESTED, Stage.COMPILE, "it compiles and was not tested"
    gpu = test.report.basis == "gpu"
    decided = Stage.CONFIRMATION if test.confirmation else None if gpu else Stage.INTERPRET
    if test.status is Status.UNTRACEABLE and not gpu:
        return test.status, Stage.COMPILE, test.reason
    if test.status is not None:
        return test.status, decided or Stage.CORRECTNESS, test.reason
    where = ("live on the GPU" if test.report.path == "live" else "on the GPU") if gpu else "in the interpreter"
    reason = f"{len(test.report.checks)} checks on {', '.join(test.report.workloads)} passed {where}"
    return Status.CORRECT, decided or (Stage.TIMING if test.timings else Stage.CORRECTNESS), reason
