"""A forked child per traced file, as the sandbox does it, minus the confinement. One warm cache for the
shared kernel."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import verifier.plan.warm  # noqa: F401 - as the server preloads it
from verifier.plan.audit import Reference, audit
from verifier.plan.reader import read_plan
from verifier.plan.schema import Plan
from verifier.plan.trace import trace_job
from verifier.problem import LibraryPolicy, Precision, Problem, Role, Workload
from verifier.verdict import Diagnostic

PRELUDE = """import torch, torch.nn as nn, triton, triton.language as tl
@triton.jit
def relu_k(x, o, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + r, tl.maximum(tl.load(x + r, r < n), 0.), r < n)
def relu(x):
    o = torch.empty_like(x)
    relu_k[(triton.cdiv(x.numel(), 1024),)](x, o, x.numel(), B=1024)
    return o
class Model(nn.Module):
    def forward(self, x): return torch.relu(x)
"""
"""Lines 1 to 12 of most test candidates."""


def tensor(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"kind": "tensor", "shape": list(shape), "dtype": dtype, "stride": None}


@dataclass
class Traced:
    """What came back from one trace."""

    status: str
    diagnostics: list[dict[str, Any]]
    value: dict[str, Any] | None
    blobs: dict[str, bytes]
    source: str
    error: str = ""
    plan: Plan | None = field(default=None)

    def findings(
        self,
        library: LibraryPolicy = LibraryPolicy.ASSIST,
        precision: Precision = Precision.TF32,
        reference: dict[str, Reference] | None = None,
    ) -> tuple[Diagnostic, ...]:
        assert self.plan is not None, (self.status, self.diagnostics)
        workload = Workload(name="w", roles=frozenset({Role.SMALL}))
        problem = Problem(
            name="test", source="", file="test.py", workloads=(workload,), library=library, precision=precision
        )
        return audit(self.plan, problem, self.source, self.blobs, reference)

    def errors(self, library: LibraryPolicy = LibraryPolicy.ASSIST) -> set[str]:
        return {d.code for d in self.findings(library) if d.severity == "error"}

    def forward(self) -> list[str]:
        assert self.plan is not None, (self.status, self.diagnostics)
        return [s.op if s.kind == "aten" else "launch" for s in self.plan.programs[0].forward]


def run_forked(payload: dict[str, Any], cache: Path) -> tuple[Any, str]:
    """(result, error) of trace_job in a forked child; a child without an answer gives (None, 'no answer')."""
    reader, writer = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        if cache.exists():
            shutil.copytree(cache, Path(folder) / "triton")
        child = os.fork()
        if child == 0:
            _child(payload, Path(folder), writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        if not cache.exists() and (Path(folder) / "triton").exists():
            shutil.copytree(Path(folder) / "triton", cache)
    return pickle.loads(data) if data else (None, "no answer")


def _child(payload: dict[str, Any], folder: Path, writer: int) -> None:
    warnings.simplefilter("ignore")  # a candidate's warnings are no errors
    try:
        answer = (trace_job(payload, {}, folder), "")
    except BaseException:  # noqa: BLE001 - whatever it is, the parent must hear of it
        answer = (None, traceback.format_exc())
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(pickle.dumps(answer))
    os._exit(0)


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Traced]:
    cache = tmp_path_factory.mktemp("triton") / "cache"

    def run(body: str, inputs: list[Any] | None = None, init: list[Any] | None = None, *,
    prelude: str = PRELUDE,
            name: str = "ModelNew", workloads: int = 1, target: str = "h200",
            disguise: int = 0) -> Traced:  # fmt: skip
        source = prelude + body
        one = {"init": init or [], "init_kwargs": {}, "inputs": inputs or [tensor(64, 1024)]}
        payload = {"source": source, "filename": "candidate.py", "class": name, "target": target,
                   "disguise": disguise, "workloads": [{"name": f"w{i}", **one} for i in range(workloads)]}  # fmt: skip
        answer, error = run_forked(payload, cache)
        if answer is None:
            return Traced("crash", [], None, {}, source, error)
        value, blobs = answer
        value = json.loads(json.dumps(value, allow_nan=False))
        traced = Traced(value["status"], value["diagnostics"], value["plan"], blobs, source)
        if traced.value is not None:
            traced.plan = read_plan(traced.value, blobs)
        for d in traced.diagnostics:
            Diagnostic.model_validate(d)
        return traced

    run("class ModelNew(nn.Module):\n    def forward(self, x): return relu(x)\n")
    return run
