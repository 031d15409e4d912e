"""Bad input and bad surroundings: one sentence each, and the next visit goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.verifier.gpu.processes.conftest import with_cubin
from verifier.gpu.sharing import OWN_BYTES, runs_on, signs
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request
from verifier.verdict import Status

REFUSED_LINES = 100_000
Make = Callable[..., Plans]
Ask = Callable[..., Request]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_cubin(worker: GpuWorker, plans: Make, request_of: Ask, share: float) -> None:
    before = worker.pids()
    made = plans("right")
    plan, blobs = with_cubin(made.plan, made.blobs, lambda cubin: cubin[: int(len(cubin) * share)])
    visit = worker.visit(request_of(), replace(made, plan=plan, blobs=blobs))
    assert visit.status is Status.REJECTED
    assert re.fullmatch(r"the plan is malformed: kernel \w+: .*(cubin|ELF|cut off).*", visit.reason), visit.reason
    assert worker.visit(request_of(), plans("right")).status is None
    assert worker.pids() == before


UNTAKEN = "this GPU or its driver does not take the compiled kernels: "


@pytest.mark.parametrize(
    ("code", "status", "outcome", "words"),
    [
        (209, None, "not_applicable", UNTAKEN),
        (222, None, "not_applicable", UNTAKEN),
        (200, Status.COMPILE_ERROR, "failed", "a kernel could not be loaded: "),
    ],
)
def test_what_the_driver_does_not_take(
    worker: GpuWorker, plans: Make, request_of: Ask, code: int, status: Status | None, outcome: str, words: str
) -> None:
    """Where a kernel's line is such a code, the host device refuses it as the driver would."""

    def change(plan: dict[str, Any]) -> None:
        for image in plan["kernels"].values():
            image["line"] = REFUSED_LINES + code

    visit = worker.visit(request_of(), plans("right", change=change))
    assert (visit.status, visit.test.outcome) == (status, outcome), visit.reason
    assert visit.reason == f"{words}loading the cubin: REFUSED: error {code}"
    assert worker.visit(request_of(), plans("right")).status is None


@pytest.mark.parametrize(
    ("target", "own", "can"),
    [
        ("sm_90a", "sm_90", True), ("sm_80", "sm_86", True), ("sm_80", "sm_80", True), ("sm_86", "sm_80", False),
        ("sm_90a", "sm_80", False), ("sm_80", "sm_90", False), ("sm_90a", "sm_100", False), ("sm_100", "sm_100", True),
        ("sm_100a", "sm_103", False),
    ],
)  # fmt: skip
def test_a_target_and_the_gpu_that_is_there(target: str, own: str, can: bool) -> None:
    assert runs_on(target, own) is can


def test_signs_of_others() -> None:
    assert signs(OWN_BYTES, (1.9e9, 1.7e9), 1.98e9) == []
    assert signs(OWN_BYTES, (), None) == []
    memory, clock = signs(OWN_BYTES + 7 * 10**9, (0.6e9, 0.7e9, 1.9e9), 1.98e9)
    assert {memory.code, clock.code} == {"gpu-in-use"}
    assert memory.severity == "warning"
    assert memory.message == "other processes hold 7.0 GB or more of this GPU's memory; times may be off"
    assert "reads 0.70 GHz of 1.98" in clock.message
