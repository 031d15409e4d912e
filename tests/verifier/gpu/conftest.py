"""Plans of small candidates, traced in the warm sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from verifier.interpreter.gate import Zygotes
from verifier.plan.reader import read_plan
from verifier.plan.schema import Plan

PLANTED = Path(__file__).parent / "planted"
Traced = tuple[Plan, dict[str, bytes]]


@pytest.fixture
def traced(zygotes: Zygotes) -> Callable[..., Traced]:
    """Source, input tensors and constructor arguments to a plan (workload "w") and its blobs."""
    from verifier.specs import encode

    def trace(source: str, inputs: Sequence[Any], init: Sequence[Any] = (), name: str = "ModelNew") -> Traced:
        workload = {"name": "w", "init": [encode(i) for i in init], "init_kwargs": {},
                    "inputs": [encode(i) for i in inputs]}  # fmt: skip
        payload = {"source": source, "filename": "candidate.py", "class": name, "target": "sm_90a",
                   "workloads": [workload]}  # fmt: skip
        job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
        assert job.outcome == "ok", job.error
        assert job.value["status"] == "ok", job.value["diagnostics"]
        return read_plan(job.value["plan"], job.blobs), job.blobs

    return trace


@pytest.fixture(scope="session")
def planted(zygotes: Zygotes) -> tuple[Plan, dict[str, Any], dict[str, bytes]]:
    """The plan of `planted/at_roof.py` on workload "small", as a record and as JSON, and its blobs."""
    tensor = {"kind": "tensor", "shape": [3000], "dtype": "float32", "stride": None}
    workload = {"name": "small", "init": [], "init_kwargs": {}, "inputs": [tensor, tensor]}
    payload = {"source": (PLANTED / "at_roof.py").read_text(), "filename": "f.py", "class": "ModelNew",
               "target": "sm_90a", "workloads": [workload]}  # fmt: skip
    job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
    assert job.outcome == "ok", job.error
    assert job.value["status"] == "ok", job.value["diagnostics"]
    return read_plan(job.value["plan"], job.blobs), job.value["plan"], job.blobs
