"""The verdict about one candidate: a status, the stage that decided it and one report per stage reached.

Everything here is frozen data. The models refuse combinations that cannot happen, so a reader never has to.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from verifier.timing import WorkloadTiming

FILE_MARGIN = math.log(1.02)
"""Log ratio by which the time of a file may differ from that of its plan."""
FILE_SLACK = 2e-5
"""Seconds by which windows of two processes may differ: handing them the GPU takes either more. 9 us were measured."""
FILE_LEAST = 8e-6
"""Calls that take less are alike: the host starts graphs no faster, 3 to 6 us each in one process or another."""


Path = Literal["plan", "live"]
"""What a statement is about: the plan of a candidate, or its own process live on a GPU."""


class Record(BaseModel):
    """Base of all records: frozen, strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Status(StrEnum):
    """How an attempt ended. One word each; `Verdict.reason` says the rest."""

    CORRECT = "correct"
    """Every check of the stages that could run here passed; `Verdict.basis` says which could."""
    UNTESTED = "untested"
    """It compiles and the audit has no objection, but no test applies on this machine."""
    UNPARSABLE = "unparsable"
    """No complete code block, a syntax error, or no class `ModelNew`."""
    COMPILE_ERROR = "compile_error"
    """A kernel does not compile; the compiler's message has the line."""
    OVER_LIMITS = "over_limits"
    """A launch the target refuses: shared memory, threads, registers or grid."""
    RUNTIME_ERROR = "runtime_error"
    """The candidate's own Python raised."""
    UNTRACEABLE = "untraceable"
    """The plan would depend on tensor values or on native host code."""
    REJECTED = "rejected"
    """The audit found that the candidate does not do the work, or not as the problem allows."""
    WRONG = "wrong"
    """A value, shape, dtype or non-finite mask differs from the reference."""
    OUT_OF_BOUNDS = "out_of_bounds"
    """A load or store outside every tensor that was passed to the kernel."""
    TIMEOUT = "timeout"
    """The candidate ran past its limit of CPU or wall time."""
    CRASH = "crash"
    """The candidate ended its own process (signal, exit, memory limit)."""


class Stage(StrEnum):
    """Stages in the order in which they run; the first that objects decides."""

    PARSE = "parse"
    COMPILE = "compile"
    AUDIT = "audit"
    INTERPRET = "interpret"
    CORRECTNESS = "correctness"
    TIMING = "timing"
    CONFIRMATION = "confirmation"


class Diagnostic(Record):
    """One message about the candidate, for people and models alike."""

    severity: Literal["error", "warning", "advice"]
    code: str
    """Short kebab-case name, for example `compile-error`, `foreign-output`, `write-write-race`."""
    message: str
    line: int | None = None
    """1-based line in the candidate's source, None when unknown."""
    column: int | None = None
    excerpt: str = ""
    """The source line with a caret below, or empty."""
    count: int = 1
    """How often it was seen."""


class KernelReport(Record):
    """Static profile of one compiled kernel, read from its cubin."""

    name: str
    cubin: str
    """SHA-256 of the cubin, hex."""
    registers: int
    """Per thread."""
    spill_bytes: int
    """Local memory per thread that register spills and stack arrays use, bytes."""
    shared_bytes: int
    """Per block, static and dynamic."""
    num_warps: int
    num_stages: int
    num_ctas: int = 1
    blocks_per_sm: int
    occupancy: float = Field(ge=0, le=1)
    """Resident warps over the most that the target holds."""
    limiter: str
    """What stops another block: registers, shared memory, warps or blocks."""
    instructions: dict[str, int] = Field(default_factory=dict)
    """Instruction mix of the machine code: group name to static count."""


class LaunchReport(Record):
    """One launch of a plan."""

    kernel: str
    cubin: str
    grid: tuple[int, int, int]
    threads: int
    """Per block."""
    waves: float
    """Blocks over the blocks that the target holds at once."""
    tail: float = Field(ge=0, le=1)
    """Share of the last wave that stays empty."""
    line: int | None = None
    """Line of the launch in the candidate's source."""
    alternatives: int = 1
    """Autotune configurations recorded for this launch."""


class BaseReport(Record):
    """What a candidate is timed against."""

    name: str
    """Of the baseline: eager, compile, or one that the problem file declares."""
    tuned: bool = False
    """Its compiler chose kernels by their times on a device, not by rules alone."""
    plan: str
    """SHA-256 of its plan."""
    instead: str = ""
    """Why it stands for the problem's own baseline, where that one could not be had."""


class CompileReport(Record):
    """What the trace and the audit found. `plan` names a blob that holds the plan, None when there is none."""

    target: str
    """The target as it was asked for, for example `h200`."""
    triton: str
    """Version of Triton that compiled the candidate."""
    plan: str | None = None
    kernels: tuple[KernelReport, ...] = ()
    launches: tuple[LaunchReport, ...] = ()
    library_steps: dict[str, int] = Field(default_factory=dict)
    """aten operator to count, data movement and allocation left out."""
    findings: tuple[Diagnostic, ...] = ()
    """Compiler errors and audit findings."""
    base: BaseReport | None = None
    """What its times are compared with, None where no baseline could be traced."""
    seconds: float
    """Wall seconds of trace, compilation and static profile."""


class OutputCheck(Record):
    """One output tensor under one draw of inputs. Errors are centred: ||o - r|| / ||r - mean(r)||, r in float64; or,
    where `reason` says that the output is near PyTorch's own result, r that result and `yardstick` 0."""

    workload: str
    draw: str
    """Name of the input distribution."""
    output: int
    error: float | None
    """None when shape, dtype or the non-finite mask differ."""
    row_error: float | None
    yardstick: float
    """PyTorch's own error on the same inputs in the contract's precision."""
    limit: float
    """max(4 x yardstick, floor of the contract's class)."""
    passed: bool
    reason: str = ""
    allclose: bool | None = None
    """torch.allclose at KernelBench's tolerances; reported beside, never decides."""


class Traffic(Record):
    """Bytes that one source line of a kernel asked for in the interpreter, on the workload that was run."""

    line: int
    kernel: str
    loaded: int
    stored: int
    atomic: int
    masked_off: int
    """Lanes that a mask switched off."""


class TestReport(Record):
    """Correctness. `outcome` is tri-state; `not_applicable` says in `reason` why no test could run."""

    __test__ = False

    outcome: Literal["passed", "failed", "not_applicable"]
    basis: Literal["interpreter", "gpu"]
    path: Path = "plan"
    """What ran: the plan, or the candidate's own Python in a process that nobody believes."""
    reason: str = ""
    workloads: tuple[str, ...] = ()
    scaling: str = ""
    """How the interpreter could take the inputs: small workloads, scaled constants or sampled programs."""
    checks: tuple[OutputCheck, ...] = ()
    skipped_draws: dict[str, str] = Field(default_factory=dict)
    """Distribution to the reason why the reference cannot take it."""
    findings: tuple[Diagnostic, ...] = ()
    """Out-of-bounds accesses (errors) and races (advice), each with its line."""
    traffic: tuple[Traffic, ...] = ()
    precision: str | None = None
    """Class that the candidate attains: fp32, tf32, bf16, fp16, fp8; None when not probed."""
    seconds: float

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.outcome == "passed" and any(not c.passed for c in self.checks):
            raise ValueError("a test that passed has no failed check")
        if self.outcome == "passed" and not self.checks:
            raise ValueError("a test that passed has at least one check")
        return self


class LaunchEstimate(Record):
    """Analytic time of one plan step on the target."""

    name: str
    seconds: float
    bound: str
    """What bounds it: memory, l2, tensor, fp32, sfu, issue, latency, spill or launch."""
    bytes: int
    """Distinct bytes through DRAM: the least that this step must move."""
    flops: int
    requested: int = 0
    """Bytes that the kernel's text asks for, repeats counted; 0 where nobody counted."""
    dots: dict[str, int] = Field(default_factory=dict)
    """FLOP of matrix products by the class of their operands; the rest of `flops` runs on the lanes."""
    cubin: str | None = None
    """Of a custom kernel: the alternative that the estimate is about."""


class Estimate(Record):
    """An analytic estimate for one workload. It is not a measurement and no table mixes the two."""

    workload: str
    seconds: float
    base_seconds: float
    """The same model applied to the reference's plan."""
    launches: tuple[LaunchEstimate, ...] = ()


class Ceilings(Record):
    """Measured peaks of one device; rates per second."""

    device: str
    uuid: str
    driver: str
    copy_rate: float = Field(gt=0)
    """Bytes read and written by a copy."""
    flops: dict[str, float]
    """FLOP by operand class: bf16, fp16, tf32, fp32, and fp8 where the device has it."""


class StepTimes(Record):
    """Device time of each step of forward on one workload, as the runner's events say. They hold a start and a drain
    each, so their sum is above the time of the whole."""

    workload: str
    seconds: tuple[float, ...]
    """By position in forward; medians."""
    launch_seconds: float = Field(ge=0)
    """An all but empty kernel in the same run."""


class MeasuredStep(Record):
    """One step of forward. Rates are over the time without the start of a kernel."""

    position: int
    name: str
    line: int | None
    custom: bool
    """A kernel of the candidate; otherwise a library step."""
    seconds: float
    share: float = Field(ge=0, le=1)
    """Of the sum of all steps."""
    bytes_rate: float
    """The estimate's distinct bytes per second: low where bytes are read again and again."""
    flops_rate: float
    memory_share: float
    """Of the measured copy rate. Over 1 where caches serve what the estimate takes from memory."""
    compute_share: float
    """Of the measured rates of its arithmetic."""


class MeasuredWorkload(Record):
    """Where the time of one workload goes."""

    workload: str
    seconds: float
    """All steps."""
    launch_seconds: float
    gap_share: float = Field(ge=0, le=1)
    """Share of `seconds` that starting and draining kernels takes."""
    steps: tuple[MeasuredStep, ...]
    """The longest ones, in the order in which they run."""


class MeasuredProfile(Record):
    """Times by step against what the device reaches at best."""

    ceilings: Ceilings
    workloads: tuple[MeasuredWorkload, ...]


class ProfileReport(Record):
    """What is known about speed. Without a GPU: `estimates` only."""

    estimates: tuple[Estimate, ...] = ()
    timings: tuple[WorkloadTiming, ...] = ()
    """Measured on a GPU, in pairs with the base."""
    measured: MeasuredProfile | None = None
    """Measured on a GPU, step by step."""
    diagnosis: tuple[Diagnostic, ...] = ()
    """Ranked, the most costly cause first."""


class FileTiming(Record):
    """Time of the candidate's file against that of its plan on one workload, by the judge's host clock, in alternation;
    launch overhead is in both."""

    workload: str
    file_seconds: float = Field(gt=0)
    plan_seconds: float = Field(gt=0)
    """Medians over the blocks."""
    log_ratio: float
    """log(plan / file): above zero where the file is faster."""
    half_width: float = Field(ge=0)
    """Of the interval round `log_ratio`."""
    calls: int = Field(default=1, ge=1)
    """Back to back in one window of the clock, as many as make a short one long."""
    graphs: bool
    """Both ran as CUDA graphs; otherwise both ran eagerly, and the Python of the file is in its time."""

    @property
    def within(self) -> bool:
        """The file takes the time of its plan, within `FILE_MARGIN` and what the clock can tell."""
        file, plan = (max(seconds, FILE_LEAST) for seconds in (self.file_seconds, self.plan_seconds))
        near = abs(file - plan) <= (FILE_SLACK / self.calls if self.graphs else FILE_SLACK)
        return near or abs(self.log_ratio) <= FILE_MARGIN + self.half_width


class FileRun(Record):
    """How the candidate's own file behaves beside its plan, live, on the same fresh inputs."""

    outputs: Literal["bitwise", "yardstick", "different", "failed"]
    """`yardstick`: not bit by bit, and right by the rules of correctness. `different`: not right, or of another plan
    from trace to trace. `failed`: it gave none."""
    reason: str = ""
    """One sentence where it is `different` or `failed`, or has no times."""
    timings: tuple[FileTiming, ...] = ()
    seconds: float = Field(ge=0)

    @property
    def agrees(self) -> bool:
        """The file does what its plan does, in the same time. Otherwise the plan is what ships."""
        same = self.outputs in ("bitwise", "yardstick")
        return same and bool(self.timings) and all(t.within for t in self.timings)


class Verdict(Record):
    """The whole answer about one candidate on one problem."""

    candidate: str
    problem: str
    status: Status
    stage: Stage
    """The stage that decided."""
    reason: str
    """One sentence."""
    basis: Literal["none", "interpreter", "gpu"] = "none"
    """What correctness rests on."""
    path: Path = "plan"
    """What the verdict is about. A live one has times by the host's clock, launch overhead included, and does not say
    which kernels made the outputs."""
    score: float | None = None
    """Mean over timed workloads of log(T_base / T_candidate); None unless correct."""
    score_kind: Literal["estimate", "measured"] | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    """Findings of the deciding stage, errors first."""
    compile: CompileReport | None = None
    test: TestReport | None = None
    profile: ProfileReport | None = None
    file: FileRun | None = None
    """How the file itself ran beside its plan, before it was called best; the rest of the verdict is about the plan."""
    isolation: tuple[str, ...] = ()
    """Confinement that this kernel or machine could not give; empty is best."""
    duplicate_of: str | None = None
    """Id of an equal candidate or plan judged before, whose result this is."""
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall seconds per stage."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.score is None) != (self.score_kind is None):
            raise ValueError("a score and its kind come together")
        if self.score is not None and self.status is not Status.CORRECT:
            raise ValueError("only a correct candidate has a score")
        if self.status is Status.CORRECT and (self.test is None or self.test.outcome != "passed"):
            raise ValueError("correct needs a test that passed")
        if self.status is Status.CORRECT and self.basis == "none":
            raise ValueError("correct needs a basis")
        if self.confirmed and (self.profile is None or any(t.confirmed is None for t in self.profile.timings)):
            raise ValueError("a confirmed verdict has confirmed times only")
        return self

    @property
    def ok(self) -> bool:
        return self.status is Status.CORRECT

    @property
    def confirmed(self) -> bool:
        """Whether a second visit, in a fresh runner on other inputs, found it correct and made its score."""
        return self.ok and self.stage is Stage.CONFIRMATION

    @property
    def ships_plan(self) -> bool:
        """Whether the file does not do what its plan does, so that the plan is what was judged and what ships."""
        return self.file is not None and not self.file.agrees
