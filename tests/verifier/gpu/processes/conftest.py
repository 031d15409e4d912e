"""Real plans of small programs, and a worker whose device is the host's memory."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request
from verifier.interpreter.gate import Zygotes
from verifier.loader import parse_problem
from verifier.plan import triton_image
from verifier.problem import Problem

HERE = Path(__file__).parent
N = 300


@pytest.fixture(scope="session")
def problem(problem_text: str) -> Problem:
    """x * 2 + y, elementwise; workload `small` has 300 elements."""
    return parse_problem(problem_text, file="scaled_sum.py", name="scaled_sum")


@pytest.fixture(scope="session")
def traced(zygotes: Zygotes, problem_text: str, correct: str) -> dict[str, tuple[dict[str, Any], dict[str, bytes]]]:
    """Real plans of the reference (`Model`, library steps) and of a candidate with one kernel (`ModelNew`)."""
    tensor = {"kind": "tensor", "shape": [N], "dtype": "float32", "stride": None}
    workload = {"name": "small", "init": [], "init_kwargs": {}, "inputs": [tensor, tensor]}
    found = {}
    for name, source in (("Model", problem_text), ("ModelNew", correct)):
        payload = {"source": source, "filename": "f.py", "class": name, "target": "sm_90a", "workloads": [workload]}
        job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
        assert job.outcome == "ok", job.error
        assert job.value["status"] == "ok", job.value
        found[name] = (job.value["plan"], job.blobs)
    return found


@pytest.fixture(scope="session")
def plans(traced: dict[str, tuple[dict[str, Any], dict[str, bytes]]]) -> Callable[..., Plans]:
    """Plans whose launch behaves like a function of `host_kernels`; None stands for the reference's library steps."""

    def make(
        behaviour: str | None, *, based: bool = False, change: Callable[[dict[str, Any]], object] | None = None
    ) -> Plans:
        plan, blobs = traced["ModelNew" if behaviour else "Model"]
        plan = copy.deepcopy(plan)
        for step in plan["programs"][0]["forward"]:
            for launch in step.get("alternatives", ()):
                launch["config"] = behaviour
        if change is not None:
            change(plan)
        base = traced["Model"] if based else (None, {})
        return Plans(plan, blobs, *base)

    return make


def with_cubin(
    plan: Mapping[str, Any], blobs: Mapping[str, bytes], change: Callable[[bytes], bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A plan of one Triton kernel with another cubin, by names that are true."""
    ((old, image),) = plan["kernels"].items()
    cubin = change(blobs[f"{image['cubin']}.cubin"])
    sha = hashlib.sha256(cubin).hexdigest()
    new = triton_image.key({**image, "cubin": sha})
    text = json.dumps(plan).replace(image["cubin"], sha).replace(old, new)
    return json.loads(text), {**blobs, f"{sha}.cubin": cubin}


@pytest.fixture(scope="session")
def request_of(problem: Problem) -> Callable[..., Request]:
    """A request for workload `small`; only what hangs by design needs a shorter deadline."""

    def make(**changes: Any) -> Request:
        return Request(**{"problem": problem, "seed": 7, "workloads": ("small",), "command_seconds": 60.0, **changes})

    return make


@pytest.fixture(scope="session")
def worker() -> Iterator[GpuWorker]:
    """One worker for all tests, on the host's memory."""
    with GpuWorker("host_kernels:open_device", paths=[HERE], spares=1) as started:
        yield started
        pids = [pid for group in started.pids().values() for pid in group]
    assert len(pids) == 4
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
