"""A file beside its plan on the host's memory: what it gives, and what it takes in windows of many calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.verifier.gpu.live.conftest import HONEST, forward
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request
from verifier.verdict import FileRun, FileTiming

Ran = Callable[[str], FileRun]


@pytest.fixture(scope="module")
def ran(worker: GpuWorker, base: tuple[dict[str, Any], dict[str, bytes]], request_of: Callable[..., Request]) -> Ran:
    """A source beside the reference's plan."""

    def run(source: str) -> FileRun:
        return worker.run_file(request_of(path="file", timed=("small",)), Plans(*base, source=source))

    return run


def test_windows_are_long_however_short_a_call_is(ran: Ran) -> None:
    found = ran(HONEST)
    assert found.outputs == "bitwise", found.reason
    (timing,) = found.timings
    assert max(timing.file_seconds, timing.plan_seconds) * timing.calls > 1e-3


def test_a_file_that_is_slower_than_its_plan(ran: Ran) -> None:
    found = ran(forward("time.sleep(0.06)\nreturn x * 2.0 + y", "import time"))
    (timing,) = found.timings
    assert (found.outputs, timing.calls) == ("bitwise", 1), found.reason
    assert timing.file_seconds > 0.03  # of 0.06, less what this machine is busy with
    assert timing.log_ratio < 0


@pytest.mark.parametrize(
    ("file_us", "plan_us", "calls", "half_width", "within"),
    [(1030, 1000, 1, 0.0, False), (1030, 1000, 1, 0.02, True), (1015, 1000, 1, 0.0, True), (25, 10, 1, 0.0, True),
     (10.3, 10, 500, 0.0, False), (10.1, 10, 500, 0.0, True), (9.5, 10, 500, 0.0, False), (6, 4, 500, 0.0, True),
     (10, 4, 500, 0.0, False)],
)  # fmt: skip
def test_a_file_takes_its_plans_time_or_not(
    file_us: float, plan_us: float, calls: int, half_width: float, within: bool
) -> None:
    ratio = math.log(plan_us / file_us)
    timing = FileTiming(
        workload="small", file_seconds=file_us * 1e-6, plan_seconds=plan_us * 1e-6, log_ratio=ratio,
        half_width=half_width, calls=calls, graphs=True,
    )  # fmt: skip
    assert timing.within is within


def test_a_file_that_gives_something_else_does_not_agree(ran: Ran) -> None:
    found = ran(forward("return x * 2.01 + y"))
    assert (found.outputs, found.agrees) == ("different", False)
