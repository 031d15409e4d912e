"""Races of alternatives begin every trial where Triton's autotuner does: `reset_to_zero` and `restore_value` hold.

A trial is a whole call of forward on restored state, so what forward clears or copies is cleared and copied again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request
from verifier.interpreter.gate import Zygotes
from verifier.loader import parse_problem
from verifier.timing import Rules

CANDIDATES = Path(__file__).parents[1] / "candidates"


@pytest.mark.parametrize("name", ["reset_to_zero", "restore_value"])
def test_trials_begin_where_the_tuners_do(worker: GpuWorker, zygotes: Zygotes, name: str) -> None:
    source = (CANDIDATES / f"triton_autotune_{name}.py").read_text()
    tensor = {"kind": "tensor", "shape": [64, 1024], "dtype": "float32", "stride": None}
    workload = {"name": "full", "init": [], "init_kwargs": {}, "inputs": [tensor]}
    made = []
    for kind in ("ModelNew", "Model"):
        payload = {"source": source, "filename": "f.py", "class": kind, "target": "sm_90a", "workloads": [workload]}
        job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
        assert job.outcome == "ok", job.error
        made += [job.value["plan"], job.blobs]
    steps: list[dict[str, Any]] = [s for s in made[0]["programs"][0]["forward"] if s["kind"] == "launch"]
    assert steps[0][name]
    assert len(steps[0]["alternatives"]) > 1
    declared = 'WORKLOADS = [{"name": "full", "roles": ["small", "timed"], "constants": {}}]\n'
    problem = parse_problem(source + declared, file="tuned.py", name="tuned")
    request = Request(
        problem=problem,
        seed=3,
        workloads=("full",),
        timed=("full",),
        draws=("task",),
        probe=False,
        rules=Rules(max_blocks=2),
    )
    visit = worker.visit(request, Plans(*made))
    assert visit.status is None, visit.reason
    (chosen,) = visit.timings[0].choice.values()
    assert chosen > 0, "every trial of the faster alternatives failed"
