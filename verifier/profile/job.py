"""Entry point of the sandbox: `verifier.profile.job:profile_job` reads a plan and gives reports, estimates
and advice.

It runs in a confined child of its own. It never imports the candidate; plan, cubins and TTIR are data that an
untrusted process wrote, so they pass `read_plan` first. Errors: PlanError for a malformed plan, CubinError
for a cubin that the tools cannot read. TTIR that cannot be followed is no error: that launch counts one pass
over its buffers and is flagged.

Disassembly costs about half a second, nearly all of it the tool's start. It is done once for all kernels, while this
process counts their work, and of an autotuned launch only for the `_REFINED` alternatives that are fastest without it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from verifier.plan.reader import read_plan
from verifier.plan.schema import Alternative, AtenStep, KernelImage, LaunchStep, Plan, Program
from verifier.profile import cubin, ttir
from verifier.profile.calls import library_call
from verifier.profile.coverage import shortfalls
from verifier.profile.diagnosis import diagnose
from verifier.profile.estimate import estimate_launch
from verifier.profile.library import ATTENTIONS, CONVOLUTIONS, MATMULS, operand_class
from verifier.profile.roofline import L2, StepTime, estimate_library
from verifier.profile.rules import TimedLaunch, TimedLibrary
from verifier.profile.steps import Kernel, WorkCache, kernel_of, launch_facts
from verifier.target import Target, get_target
from verifier.verdict import Estimate, KernelReport, LaunchEstimate, LaunchReport

_REFINED = 3
_BASE = "base/"

Timed = TimedLaunch | TimedLibrary


def profile_job(
    payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """`payload`: {"target": name, "plan": plan JSON, "base": plan JSON or null}; `blobs` as the trace gave
    them, the base's under `base/`.

    Value: {"kernels": [KernelReport], "launches": [LaunchReport] of the first workload, "estimates":
    [Estimate], "diagnosis": [Diagnostic], "shortfalls": [Diagnostic], errors about work that is not done}.
    `base_seconds` is 0 where the base has no program of that name. No blobs.
    """
    target = get_target(str(payload["target"]))
    own = {name: data for name, data in blobs.items() if not name.startswith(_BASE)}
    profile = Profile(read_plan(payload["plan"], own), own, target, Path(workdir))
    base: dict[str, float] = {}
    if payload.get("base") is not None:
        other = {name.removeprefix(_BASE): data for name, data in blobs.items() if name.startswith(_BASE)}
        reference = Profile(read_plan(payload["base"], other), other, target, Path(workdir))
        base = {p.workload: sum(s.time.seconds for s in reference.steps(p)) for p in reference.plan.programs}
    timed = {program.workload: profile.steps(program) for program in profile.plan.programs}
    first = next(iter(timed.values()))
    value = {
        "kernels": [k.model_dump(mode="json") for k in profile.reports()],
        "launches": [s.launch.model_dump(mode="json") for s in first if isinstance(s, TimedLaunch)],
        "estimates": [
            _estimate(workload, steps, base.get(workload, 0.0)).model_dump(mode="json")
            for workload, steps in timed.items()
        ],
        "diagnosis": [d.model_dump(mode="json") for d in diagnose(list(timed.values()), target)],
        "shortfalls": [
            d.model_dump(mode="json") for p in profile.plan.programs for d in shortfalls(p, timed[p.workload])
        ],
    }
    return value, {}


def _estimate(workload: str, steps: Sequence[Timed], base_seconds: float) -> Estimate:
    launches = tuple(_launch_estimate(s) for s in steps if s.time.launches)
    total = sum(s.time.seconds for s in steps)
    return Estimate(workload=workload, seconds=total, base_seconds=base_seconds, launches=launches)


def _launch_estimate(step: Timed) -> LaunchEstimate:
    time, dots, extra = step.time, Counter[str](), dict[str, Any]()
    if isinstance(step, TimedLaunch):
        work = step.facts.work
        for kind, flop in work.dots.items():
            dots[kind.split()[0]] += flop
        extra = {"requested": work.requested if work.sampled else 0, "cubin": step.kernel.cubin}
    elif step.operands:
        dots[step.operands] = time.flops
    return LaunchEstimate(
        name=time.name, seconds=time.seconds, bound=time.bound, bytes=time.bytes, flops=time.flops, dots=dots, **extra
    )


class Profile:
    """One plan with the files of its kernels, read on demand."""

    def __init__(self, plan: Plan, blobs: Mapping[str, bytes], target: Target, workdir: Path) -> None:
        self.plan = plan
        self._blobs = blobs
        self._target = target
        self._workdir = workdir
        self._kernels: dict[str, Kernel] = {}
        self._works = WorkCache()
        for sha, image in plan.kernels.items():
            self._kernels[sha] = self._read(sha, image)
        self._refine()

    def reports(self) -> tuple[KernelReport, ...]:
        """All kernels of the plan, in the plan's order."""
        return tuple(_kernel_report(k) for k in self._kernels.values())

    def steps(self, program: Program) -> list[Timed]:
        """Every forward step with its time; of an autotuned launch the fastest alternative."""
        l2 = L2(self._target)
        timed: list[Timed] = []
        for step in program.forward:
            if isinstance(step, AtenStep):
                call = library_call(step, program, self.plan.flags)
                products = call.name in MATMULS | CONVOLUTIONS | ATTENTIONS
                operands = operand_class(call) if products else ""
                timed.append(TimedLibrary(call.name, estimate_library(call, self._target, l2), step.line, operands))
            else:
                timed.append(self._launch(step, program, l2))
        return timed

    def _launch(self, step: LaunchStep, program: Program, l2: L2) -> TimedLaunch:
        chosen = self._fastest(step.alternatives, program, l2)
        kernel = self._kernels[chosen.kernel]
        facts = launch_facts(kernel, chosen, program, self._works)
        time = estimate_launch(facts, self._target, l2)
        if len(step.alternatives) > 1:
            time = replace(time, name=f"{time.name} [{_config(chosen)}]")
        report = _launch_report(step, chosen, kernel, self._target)
        return TimedLaunch(facts, time, _kernel_report(kernel), report, kernel.resources, kernel.image.line)

    def _refine(self) -> None:
        """Reads the machine code of the kernels that may be the fastest of their launch."""
        steps = [(step, program) for program in self.plan.programs for step in program.launches()]
        wanted = {a.kernel for step, program in steps for a in self._likely(step.alternatives, program)}
        if not wanted:
            return
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(self._disassemble, sorted(wanted))
            for step, program in steps:
                if len(step.alternatives) == 1:
                    launch_facts(self._kernels[step.kernel], step.alternatives[0], program, self._works)
            found = read.result()
        for sha, sass in found.items():
            self._kernels[sha] = replace(self._kernels[sha], sass=sass)

    def _likely(self, alternatives: Sequence[Alternative], program: Program) -> Sequence[Alternative]:
        """Those that are fastest by rough times, made without machine code."""
        if len(alternatives) <= _REFINED:
            return alternatives
        return [a for a, _ in self._ranked(alternatives, program, L2(self._target))[:_REFINED]]

    def _fastest(self, alternatives: Sequence[Alternative], program: Program, l2: L2) -> Alternative:
        if len(alternatives) == 1:
            return alternatives[0]
        read = [a for a in alternatives if self._kernels[a.kernel].sass is not None]
        return self._ranked(read, program, l2)[0][0]

    def _ranked(
        self, alternatives: Iterable[Alternative], program: Program, l2: L2
    ) -> list[tuple[Alternative, StepTime]]:
        times = []
        for alternative in alternatives:
            facts = launch_facts(self._kernels[alternative.kernel], alternative, program, self._works)
            times.append((alternative, estimate_launch(facts, self._target, l2.copy())))
        return sorted(times, key=lambda pair: pair[1].seconds)

    def _read(self, sha: str, image: KernelImage) -> Kernel:
        path = cubin.write_cubin(self._blobs[f"{image.cubin}.cubin"], self._workdir, sha)
        resources = cubin.read_resources(path, image.name)
        return kernel_of(image, resources, self._module(image), self._target)

    def _module(self, image: KernelImage) -> ttir.Module | None:
        """None for text that cannot be read, and for CUDA C++, which has none."""
        if image.ttir is None:
            return None
        try:
            return ttir.parse(self._blobs[f"{image.ttir}.ttir"].decode("utf-8", "replace"))
        except ttir.TtirError:
            return None

    def _disassemble(self, wanted: Sequence[str]) -> dict[str, cubin.Sass]:
        images = [self._kernels[sha].image for sha in wanted]
        codes = [cubin.machine_code(self._blobs[f"{image.cubin}.cubin"], image.name) for image in images]
        return dict(zip(wanted, cubin.disassemble(codes, self._target, self._workdir), strict=True))


def _config(chosen: Alternative) -> str:
    """The configuration without what was left at its default."""
    parts = chosen.config.split(", ")
    return ", ".join(p for p in parts if not p.endswith(": None") and p != "num_ctas: 1")


def _kernel_report(kernel: Kernel) -> KernelReport:
    image, resources = kernel.image, kernel.resources
    return KernelReport(
        name=image.title,
        cubin=image.cubin,
        registers=resources.registers,
        spill_bytes=resources.stack,
        shared_bytes=kernel.shared,
        num_warps=image.num_warps,
        num_stages=image.num_stages,
        num_ctas=image.num_ctas,
        blocks_per_sm=kernel.occupancy.blocks,
        occupancy=kernel.occupancy.fraction,
        limiter=kernel.occupancy.limiter,
        instructions=dict(kernel.sass.instructions) if kernel.sass is not None else {},
    )


def _launch_report(step: LaunchStep, chosen: Alternative, kernel: Kernel, target: Target) -> LaunchReport:
    """Waves and tail count blocks: a program of a cluster is `num_ctas` blocks."""
    blocks = math.prod(chosen.grid) * kernel.image.num_ctas
    waves = blocks / (target.sms * max(1, kernel.occupancy.blocks))
    return LaunchReport(
        kernel=kernel.image.title,
        cubin=kernel.image.cubin,
        grid=chosen.grid,
        threads=math.prod(kernel.image.block or (kernel.image.num_warps * 32,)),
        waves=waves,
        tail=min(1.0, max(0.0, 1 - waves / math.ceil(waves))) if waves > 0 else 0.0,
        line=step.line,
        alternatives=len(step.alternatives),
    )
