"""Five planted causes with real static reports and made-up times: the right cause comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from verifier.gpu.advice import MOST_STEPS, advise
from verifier.interpreter.gate import Zygotes
from verifier.plan.reader import read_plan
from verifier.plan.schema import Plan
from verifier.profile.diagnosis import MAX_ADVICE
from verifier.target import get_target
from verifier.verdict import Ceilings, Diagnostic, Estimate, KernelReport, MeasuredProfile, StepTimes

PLANTED = Path(__file__).parent / "planted"
TARGET = get_target("h200")
CEILINGS = Ceilings(
    device="H200", uuid="u", driver="13000", copy_rate=4.22e12,
    flops={"bf16": 784e12, "fp16": 754e12, "tf32": 409e12, "fp32": 51e12, "fp8": 1409e12},
)  # fmt: skip
LAUNCH = 2.5e-6


@dataclass(frozen=True)
class Static:
    """What is known of a candidate without a device."""

    plan: Plan
    kernels: tuple[KernelReport, ...]
    estimates: tuple[Estimate, ...]
    diagnosis: tuple[Diagnostic, ...]

    def unanswered(self) -> tuple[Diagnostic, ...]:
        """Of the static diagnosis, what no measurement decides."""
        return tuple(d for d in self.diagnosis if not d.code.endswith(("-bound", "-core", "-registers", "reading")))

    def advise(self, *seconds: float, **options: Any) -> tuple[MeasuredProfile, tuple[Diagnostic, ...]]:
        """`seconds` of each step that works; allocations take a microsecond."""
        given = iter(seconds)
        forward = self.plan.programs[0].forward
        every = tuple(1e-6 if s.kind == "aten" and s.role == "alloc" else next(given) for s in forward)
        times = [StepTimes(workload="w", seconds=every, launch_seconds=LAUNCH)]
        asked = {"static": self.diagnosis, "estimates": self.estimates, **options}
        return advise(self.plan, times, self.kernels, asked.pop("estimates"), CEILINGS, TARGET, **asked)


@pytest.fixture(scope="module")
def static(zygotes: Zygotes) -> Callable[..., Static]:
    held: dict[str, Static] = {}

    def make(name: str, *shapes: list[int]) -> Static:
        if name not in held:
            tensors = [{"kind": "tensor", "shape": s, "dtype": "float32", "stride": None} for s in shapes]
            workload = {"name": "w", "init": [], "init_kwargs": {}, "inputs": tensors}
            payload = {"source": (PLANTED / f"{name}.py").read_text(), "filename": "f.py", "class": "ModelNew",
                       "target": "h200", "workloads": [workload]}  # fmt: skip
            job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
            assert job.outcome == "ok", job.error
            assert job.value["status"] == "ok", job.value
            asked = {"target": "h200", "plan": job.value["plan"], "base": None}
            said = zygotes.compile.run("verifier.profile.job:profile_job", asked, job.blobs)
            assert said.outcome == "ok", said.error
            held[name] = Static(
                read_plan(job.value["plan"], job.blobs),
                tuple(map(KernelReport.model_validate, said.value["kernels"])),
                tuple(map(Estimate.model_validate, said.value["estimates"])),
                tuple(map(Diagnostic.model_validate, said.value["diagnosis"])),
            )
        return held[name]

    return make


@pytest.fixture(scope="module")
def at_roof(static: Callable[..., Static]) -> Static:
    return static("at_roof", [1 << 26], [1 << 26])


CASES = {
    "at_roof": ([[1 << 26]] * 2, (195e-6,), "memory-bound", ("stop here", "4.18 of 4.22 TB/s")),
    "rereading": ([[512, 1 << 19]], (1.6e-3,), "re-reading", ("6.44 GB for 2.15 GB", "3.0x", "1.34 of 4.22 TB/s")),
    "registers": (
        [[2048, 256, 128]] * 3, (2.4e-3,), "low-occupancy-registers", ("of 4 warps per", "registers per thread"),
    ),
    "launches": ([[4096]], (3e-6,) * 40, "launch-bound", ("40 kernels at 2.5 us", "83%", "fuse")),
    "tensor_cores": ([[4096, 4096]] * 2, (4.1e-3,), "no-tensor-core", ("137 GFLOP", "'ieee'", "33.5 of 51")),
}  # fmt: skip
"""Input shapes, plausible seconds, the cause, and what its sentence must hold."""


@pytest.mark.parametrize("name", CASES)
def test_the_planted_cause_comes_first(static: Callable[..., Static], name: str) -> None:
    shapes, seconds, cause, words = CASES[name]
    found = static(name, *shapes)
    profile, advice = found.advise(*seconds)
    assert advice[0].code == cause
    assert all(word in advice[0].message for word in words), advice[0].message
    assert advice[0].severity == "advice"
    source = (PLANTED / f"{name}.py").read_text().splitlines()
    line = advice[0].line
    assert line is None if cause == "launch-bound" else line and source[line - 1].startswith("@triton.jit")
    (workload,) = profile.workloads
    assert workload.seconds == pytest.approx(sum(seconds))
    assert sum(s.share for s in workload.steps) == pytest.approx(1)
    assert len(workload.steps) == len(seconds)


def test_the_same_kernel_far_from_the_roof_is_not_at_it(at_roof: Static) -> None:
    """A copy that takes three times as long waits for something; no estimate says so."""
    advice = at_roof.advise(600e-6)[1]
    assert advice[0].code == "latency-bound"
    assert "memory-bound" not in {d.code for d in advice}


def test_what_was_measured_drops_what_was_estimated(at_roof: Static) -> None:
    old = [Diagnostic(severity="advice", code=c, message="kernel `k`: old") for c in ("launch-bound", "narrow-loads")]
    advice = at_roof.advise(195e-6, static=[*old, *[old[1]] * 20])[1]
    assert [d.code for d in advice[:2]] == ["memory-bound", "narrow-loads"]
    assert "launch-bound" not in {d.code for d in advice}
    assert len(advice) == MAX_ADVICE


def test_without_an_estimate_only_times_are_reported(at_roof: Static) -> None:
    profile, advice = at_roof.advise(195e-6, estimates=(), static=())
    assert advice == ()
    (step,) = profile.workloads[0].steps
    assert (step.seconds, step.bytes_rate, step.memory_share) == (195e-6, 0.0, 0.0)


def test_a_loop_over_another_alternative_is_no_rereading(static: Callable[..., Static]) -> None:
    """Requests that were counted for a kernel that did not run say nothing."""
    found = static("rereading", [512, 1 << 19])
    other = found.estimates[0].launches[0].model_copy(update={"cubin": "0" * 64})
    estimates = (found.estimates[0].model_copy(update={"launches": (other,)}),)
    assert found.advise(1.6e-3, estimates=estimates)[1][0].code == "latency-bound"


def test_times_of_zero_and_rates_over_the_ceiling_do_no_harm(at_roof: Static) -> None:
    assert at_roof.advise(0.0)[1] == at_roof.unanswered()
    assert at_roof.advise(50e-6)[1][0].code == "memory-bound"


def test_the_report_keeps_the_longest_steps(static: Callable[..., Static]) -> None:
    found = static("launches", [4096])
    steps = found.advise(*[1e-6 * (i + 1) for i in range(40)])[0].workloads[0].steps
    assert [s.position for s in steps] == sorted(s.position for s in steps)
    assert len(steps) == 40 <= MOST_STEPS


def test_without_a_static_profile_there_are_names_and_times(at_roof: Static) -> None:
    bare = Static(at_roof.plan, (), (), ())
    profile, advice = bare.advise(195e-6)
    assert advice == ()
    assert [(s.name, s.custom) for s in profile.workloads[0].steps] == [("kernel", True)]
