"""Why a candidate is as fast as it is: measured seconds of its steps against the measured ceilings of the device.

Pure: no device, no clock. What a step must move and compute at least comes from the static estimate, what limits its
kernel from the static report; each cause is ranked by the measured seconds that it explains. Static findings that no
measurement answers (spills, narrow loads, the grid) follow behind, those that it does answer are dropped.

    memory-bound        at the copy rate on the least bytes: stop, or change the algorithm
    re-reading          far below it, and the kernel asks for the same bytes again and again
    extra-passes        the steps move far more than inputs, weights and outputs have
    no-tensor-core      matrix products without a tensor-core instruction
    low-occupancy-...   both rates low, and registers or shared memory let few warps in
    latency-bound       both rates low, and nothing else explains it
    launch-bound        starting kernels takes much of the time

What this cannot see: bytes that caches save or waste beyond the text's own count (`counters.py` measures them), and the
products of a CUDA C++ kernel, whose text nobody counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from verifier.plan.schema import LaunchStep, Plan, Program
from verifier.profile.calls import view_bytes
from verifier.profile.diagnosis import MAX_ADVICE, launch_bound, library_share, ranked
from verifier.profile.rules import Finding, microseconds, occupancy_limit, size, tensor_hint
from verifier.target import Target
from verifier.verdict import (
    Ceilings,
    Diagnostic,
    Estimate,
    KernelReport,
    LaunchEstimate,
    MeasuredProfile,
    MeasuredStep,
    MeasuredWorkload,
    StepTimes,
)

MOST_STEPS = 64
"""Steps of a workload that the report keeps."""
AT_ROOF = 0.75
LOW = 0.6
"""Shares of a ceiling: from the first on a step is at the roof, below the second it is far from it."""
_SMALL = 0.05
"""Share of the time below which a step is no matter."""
_REPEATS = 2.0
_FEW_WARPS = 0.3
_FULL = 0.5
"""Waves below which the grid is too small for the device, which the static diagnosis says."""
_MANY_FLOP = 64
"""FLOP per byte beyond which arithmetic on the lanes is likely a product of matrices."""
_ANSWERED = frozenset({
    "memory-bound", "tensor-bound", "fp32-bound", "latency-bound", "launch-bound", "library-share", "re-reading",
    "no-tensor-core", "low-occupancy-registers", "low-occupancy-shared",
})  # fmt: skip
"""Codes of the static diagnosis that the measured one decides anew."""
_STATIC_BOUNDS = frozenset({"sfu", "issue", "spill"})
"""Bounds of the estimate that neither rate shows; their static findings stay."""
_CLASS_OF = {"int8": "fp8"}


@dataclass(frozen=True, slots=True)
class Step:
    """One step of forward with all that is known about it."""

    position: int
    name: str
    line: int | None
    """Of the kernel, or of a library step's call."""
    custom: bool
    seconds: float
    busy: float
    """Without the start of a kernel."""
    estimate: LaunchEstimate | None
    kernel: KernelReport | None
    waves: float
    memory: float
    """Seconds of its least bytes at the copy rate."""
    compute: float
    """Seconds of its FLOP at the measured rates."""

    @property
    def headroom(self) -> float:
        return max(0.0, self.busy - max(self.memory, self.compute))

    @property
    def bytes(self) -> int:
        return self.estimate.bytes if self.estimate else 0

    @property
    def requested(self) -> int:
        """0 where nobody counted, or another alternative was counted than ran."""
        known = self.estimate is not None and self.kernel is not None and self.estimate.cubin == self.kernel.cubin
        return self.estimate.requested if self.estimate and known else 0


@dataclass(frozen=True, slots=True)
class Context:
    """One workload: its steps and what they are measured against."""

    steps: Sequence[Step]
    program: Program
    ceilings: Ceilings
    target: Target
    launch_seconds: float

    @property
    def seconds(self) -> float:
        return sum(s.seconds for s in self.steps)


def advise(
    plan: Plan,
    times: Sequence[StepTimes],
    kernels: Sequence[KernelReport],
    estimates: Sequence[Estimate],
    ceilings: Ceilings,
    target: Target,
    *,
    choices: Mapping[str, Mapping[int, int]] | None = None,
    static: Iterable[Diagnostic] = (),
) -> tuple[MeasuredProfile, tuple[Diagnostic, ...]]:
    """The measured profile and the ranked advice, at most `MAX_ADVICE`.

    `kernels` in the plan's order, empty where there is no static profile; `choices`: by workload the alternative of a
    forward step that ran, else the first; `static`: the diagnosis by estimates, ranked.
    """
    reports = dict(zip(plan.kernels, kernels, strict=True)) if kernels else {}
    known = {e.workload: e for e in estimates}
    contexts = []
    for time in times:
        program, choice = plan.program(time.workload), (choices or {}).get(time.workload, {})
        steps = _steps(plan, program, time, known.get(time.workload), reports, choice, ceilings, target)
        contexts.append(Context(steps, program, ceilings, target, time.launch_seconds))
    profile = MeasuredProfile(ceilings=ceilings, workloads=tuple(_workload(c) for c in contexts))
    found = [(f.cost / c.seconds, f) for c in contexts if c.seconds > 0 for f in _findings(c)]
    rest = [d for d in static if d.code not in _ANSWERED]
    return profile, (*ranked(found), *rest)[:MAX_ADVICE]


# -- what is known about a step --------------------------------------------------------------------


def _steps(
    plan: Plan, program: Program, times: StepTimes, estimate: Estimate | None,
    reports: Mapping[str, KernelReport], choice: Mapping[int, int], ceilings: Ceilings, target: Target,
) -> list[Step]:  # fmt: skip
    """All steps but allocations, which are no work of the device."""
    working = [i for i, s in enumerate(program.forward) if isinstance(s, LaunchStep) or s.role != "alloc"]
    launches: Sequence[LaunchEstimate | None] = estimate.launches if estimate is not None else ()
    if len(launches) != len(working):
        launches = [None] * len(working)
    made = []
    for position, of in zip(working, launches, strict=True):
        step, seconds = program.forward[position], times.seconds[position]
        name, line, kernel, waves = "", step.line, None, 0.0
        if isinstance(step, LaunchStep):
            chosen = step.alternatives[choice.get(position, 0)]
            image, kernel = plan.kernels[chosen.kernel], reports.get(chosen.kernel)
            name, line = image.title, image.line
            resident = kernel.blocks_per_sm if kernel else 0
            waves = math.prod(chosen.grid) * image.num_ctas / (target.sms * max(1, resident))
        else:
            name = step.op.removeprefix("aten::").partition(".")[0]
        made.append(
            Step(
                position=position, name=name, line=line, custom=isinstance(step, LaunchStep), seconds=seconds,
                busy=max(seconds - times.launch_seconds, seconds / 4), estimate=of, kernel=kernel, waves=waves,
                memory=of.bytes / ceilings.copy_rate if of else 0.0, compute=_compute(of, ceilings) if of else 0.0,
            )
        )  # fmt: skip
    return made


def _compute(estimate: LaunchEstimate, ceilings: Ceilings) -> float:
    """Seconds of the FLOP at the measured rates; classes that nobody measured are left out."""
    products = sum(estimate.dots.values())
    seconds = (estimate.flops - products) / ceilings.flops["fp32"]
    rates = {kind: ceilings.flops.get(_CLASS_OF.get(kind, kind)) for kind in estimate.dots}
    return seconds + sum(flop / rate for kind, flop in estimate.dots.items() if (rate := rates[kind]))


def _workload(context: Context) -> MeasuredWorkload:
    total = context.seconds
    longest = heapq.nlargest(MOST_STEPS, context.steps, key=lambda s: s.seconds)
    return MeasuredWorkload(
        workload=context.program.workload,
        seconds=total,
        launch_seconds=context.launch_seconds,
        gap_share=min(1.0, len(context.steps) * context.launch_seconds / total) if total > 0 else 0.0,
        steps=tuple(_measured(s, total) for s in sorted(longest, key=lambda s: s.position)),
    )


def _measured(step: Step, total: float) -> MeasuredStep:
    busy = step.busy or math.inf
    return MeasuredStep(
        position=step.position, name=step.name, line=step.line, custom=step.custom, seconds=step.seconds,
        share=min(1.0, step.seconds / total) if total > 0 else 0.0, bytes_rate=step.bytes / busy,
        flops_rate=step.estimate.flops / busy if step.estimate else 0.0, memory_share=step.memory / busy,
        compute_share=step.compute / busy,
    )  # fmt: skip


# -- causes ----------------------------------------------------------------------------------------


def _findings(context: Context) -> Iterator[Finding]:
    total = context.seconds
    yield from launch_bound(len(context.steps), context.launch_seconds, total)
    yield from _extra_passes(context)
    library = [s for s in context.steps if not s.custom]
    yield from library_share([(s.name, s.seconds, s.line) for s in library], total)
    for step in context.steps:
        if step.kernel and step.estimate and step.busy > max(_SMALL * total, 0.5 * context.launch_seconds):
            yield from _of_kernel(step, context)


def _of_kernel(step: Step, context: Context) -> Iterator[Finding]:
    """The causes of one kernel's time: those that explain it, else what is left, else the roof it is at."""
    explained = [*_no_tensor_core(step, context), *_rereading(step, context)]
    yield from explained
    left = step.headroom - max((f.cost for f in explained), default=0.0)
    if max(step.memory, step.compute) >= AT_ROOF * step.busy and not explained:
        yield _at_roof(step, context)
    elif left > (1 - LOW) * step.busy:
        yield from _unexplained(step, left, context)


def _no_tensor_core(step: Step, context: Context) -> Iterator[Finding]:
    assert step.estimate is not None
    assert step.kernel is not None
    dots, slow = step.estimate.dots, "fp32" in step.estimate.dots
    seen = any(group.startswith("tensor ") for group in step.kernel.instructions)
    if not step.kernel.instructions or (seen and not slow):
        return
    if not dots:
        yield from _lane_products(step, context)
        return
    flop = sum(dots.values())
    ideal = max(flop / context.ceilings.flops["tf32" if slow else "bf16"], step.memory)
    if ideal > (1 - _SMALL) * step.busy:
        return
    yield Finding(
        step.busy - ideal,
        "no-tensor-core",
        f"kernel `{step.name}`: {flop / 1e9:.3g} GFLOP of tl.dot on {'/'.join(sorted(dots))} run without tensor-core "
        f"instructions; with them the device takes about {microseconds(ideal)}; {tensor_hint(slow)}. "
        f"{_numbers(step, context)}",
        step.line,
    )


def _lane_products(step: Step, context: Context) -> Iterator[Finding]:
    """Much arithmetic on few bytes without tl.dot: likely a product of matrices by hand."""
    assert step.estimate is not None
    flop, ideal = step.estimate.flops, max(step.estimate.flops / context.ceilings.flops["tf32"], step.memory)
    if flop < _MANY_FLOP * max(1, step.bytes) or step.compute < 0.25 * step.busy:
        return
    yield Finding(
        step.busy - ideal,
        "no-tensor-core",
        f"kernel `{step.name}`: {flop / 1e9:.3g} GFLOP on {size(step.bytes)} run without tl.dot and tensor-core "
        f"instructions; where they are products of matrices, tl.dot takes about {microseconds(ideal)} with TF32. "
        f"{_numbers(step, context)}",
        step.line,
    )


def _rereading(step: Step, context: Context) -> Iterator[Finding]:
    least, target = max(1, step.bytes), context.target
    if step.requested < _REPEATS * least or step.compute > LOW * step.busy:
        return
    rate = context.ceilings.copy_rate if least > target.l2_bytes else target.l2_rate
    cost = min(step.headroom, (step.requested - least) / rate)
    if cost < 0.25 * step.busy:
        return
    yield Finding(
        cost,
        "re-reading",
        f"kernel `{step.name}`: its programs request {size(step.requested)} for {size(least)} of distinct data "
        f"({step.requested / least:.1f}x), about {microseconds(cost)}; keep what is read in registers or shared "
        f"memory, or use larger tiles. {_numbers(step, context)}",
        step.line,
    )


def _at_roof(step: Step, context: Context) -> Finding:
    if step.memory >= step.compute:
        return Finding(
            _SMALL * step.busy,
            "memory-bound",
            f"kernel `{step.name}`: at the memory roof: it moves the least bytes, {size(step.bytes)}, at "
            f"{step.memory / step.busy:.0%} of what a copy reaches; stop here, or change the algorithm so that fewer "
            f"bytes move (fuse, narrower types). {_numbers(step, context)}",
            step.line,
        )
    tensor = bool(step.estimate and step.estimate.dots)
    return Finding(
        _SMALL * step.busy,
        "tensor-bound" if tensor else "fp32-bound",
        f"kernel `{step.name}`: at the compute roof; only less work or narrower operands help. "
        f"{_numbers(step, context)}",
        step.line,
    )


def _unexplained(step: Step, left: float, context: Context) -> Iterator[Finding]:
    """Both rates are low: too few warps, or too little in flight."""
    kernel = step.kernel
    assert kernel is not None
    assert step.estimate is not None
    if kernel.occupancy <= _FEW_WARPS and kernel.limiter in ("registers", "shared memory") and step.waves >= _FULL:
        what, hint = occupancy_limit(kernel)
        spilled = f", {kernel.spill_bytes} B spilled," if kernel.spill_bytes else ""
        yield Finding(
            left * (1 - kernel.occupancy),
            f"low-occupancy-{'registers' if kernel.limiter == 'registers' else 'shared'}",
            f"kernel `{step.name}`: {kernel.blocks_per_sm} block(s) of {kernel.num_warps} warps per multiprocessor "
            f"({kernel.occupancy:.0%} occupancy), limited by {what}{spilled} and neither roof is near; {hint}. "
            f"{_numbers(step, context)}",
            step.line,
        )
    elif step.estimate.bound not in _STATIC_BOUNDS and step.waves >= _FULL:
        yield Finding(
            0.5 * left,
            "latency-bound",
            f"kernel `{step.name}`: neither roof is near and warps are not short; it waits. More loads in flight "
            f"(wider loads, num_stages, several tiles a program) and fewer barriers help. {_numbers(step, context)}",
            step.line,
        )


def _extra_passes(context: Context) -> Iterator[Finding]:
    """Intermediate results that pass through memory."""
    moved = sum(s.bytes for s in context.steps)
    program = context.program
    ends = {program.values[v].storage: v for v in (*program.inputs, *program.output_values())}
    ends |= {program.values[p.value].storage: p.value for p in program.parameters.values()}
    least = sum(view_bytes(program, v) for v in ends.values())
    memory = sum(s.memory for s in context.steps)
    if len(context.steps) < 2 or moved < _REPEATS * least or memory < 0.5 * context.seconds:
        return
    yield Finding(
        (moved - least) / context.ceilings.copy_rate,
        "extra-passes",
        f"the forward pass: its {len(context.steps)} steps move at least {size(moved)} where inputs, weights and "
        f"outputs have {size(least)} ({moved / max(1, least):.1f}x), measured {microseconds(context.seconds)}; "
        f"fuse steps so that intermediate results stay on the chip.",
        None,
    )


def _numbers(step: Step, context: Context) -> str:
    """About a dozen numbers on one kernel."""
    assert step.kernel is not None
    row, kernel, flops = _measured(step, context.seconds), step.kernel, context.ceilings.flops
    kind = max(step.estimate.dots, key=step.estimate.dots.__getitem__) if step.estimate and step.estimate.dots else ""
    kind = _CLASS_OF.get(kind, kind) if _CLASS_OF.get(kind, kind) in flops else "fp32"
    return (
        f"Measured {microseconds(step.seconds)} ({row.share:.0%} of {microseconds(context.seconds)}): "
        f"{row.bytes_rate / 1e12:.3g} of {context.ceilings.copy_rate / 1e12:.3g} TB/s ({row.memory_share:.0%}), "
        f"{row.flops_rate / 1e12:.3g} of {flops[kind] / 1e12:.3g} TFLOP/s {kind} ({row.compute_share:.0%}); "
        f"{kernel.registers} registers, {kernel.occupancy:.0%} occupancy."
    )
