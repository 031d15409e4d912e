from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from verifier.interpreter.gate import Zygotes
from verifier.profile import ttir

HERE = Path(__file__).parent
SIZE = 1024


@dataclass(frozen=True)
class Traced:
    """A plan as the trace hands it over."""

    plan: dict[str, Any]
    blobs: dict[str, bytes]


@pytest.fixture(scope="session")
def traced(zygotes: Zygotes) -> dict[str, Traced]:
    """Plans of `ModelNew` and `Reference` of candidate.py."""
    tensor = {"kind": "tensor", "shape": [SIZE, SIZE], "dtype": "float16", "stride": [SIZE, 1]}
    init = [{"kind": "value", "value": SIZE}]
    workload = {"name": "w", "init": init, "init_kwargs": {}, "inputs": [tensor]}
    source, found = (HERE / "candidate.py").read_text(), {}
    for name in ("ModelNew", "Reference"):
        payload = {"source": source, "filename": "candidate.py", "class": name, "target": "sm_90a",
                   "workloads": [workload]}  # fmt: skip
        job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
        assert job.outcome == "ok", job.error
        assert job.value["status"] == "ok", job.value["diagnostics"]
        found[name] = Traced(job.value["plan"], job.blobs)
    return found


@pytest.fixture(params=["triton36", "triton39"])
def load(request: pytest.FixtureRequest) -> Any:
    """Parses a stored TTIR text of one Triton version by kernel name."""

    def parse(name: str) -> ttir.Module:
        return ttir.parse((HERE / "ttir" / request.param / f"{name}.ttir").read_text())

    return parse
