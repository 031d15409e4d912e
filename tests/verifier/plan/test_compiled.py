"""A further trace of a file takes over what an earlier one compiled, where TTIR and options are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.verifier.plan.conftest import PRELUDE, tensor
from verifier.baseline import TRACE_JOB
from verifier.interpreter.gate import Zygotes
from verifier.plan.disguise import NAME, Disguise
from verifier.sandbox.outcome import JobResult
from verifier.traced import MAX_CLAIM_JSON, compilations, weights

FILE = PRELUDE + "class ModelNew(nn.Module):\n    def forward(self, x): return relu(x)\n"
OTHER = 20_261_127


def traced(zygotes: Zygotes, source: str, disguise: int, earlier: JobResult | None = None) -> JobResult:
    workload = {"name": "w", "init": [], "init_kwargs": {}, "inputs": [tensor(64, 1024)]}
    payload: dict[str, Any] = {"source": source, "filename": "candidate.py", "class": "ModelNew", "target": "h200",
                               "disguise": disguise, "workloads": [workload]}  # fmt: skip
    if earlier is not None:
        payload["compiled"] = compilations(earlier)
    job = zygotes.compile.run(TRACE_JOB, payload, earlier.blobs if earlier else {})
    assert (job.outcome, job.value["status"]) == ("ok", "ok"), job.error
    return job


def cubins(job: JobResult) -> set[str]:
    return {name for name in job.blobs if name.endswith(".cubin")}


def ptx(job: JobResult) -> set[str]:
    return {name for name in job.blobs if name.endswith(".ptx")}


@pytest.fixture(scope="module")
def first(zygotes: Zygotes) -> JobResult:
    return traced(zygotes, FILE, 0)


def marked(first: JobResult) -> JobResult:
    """`first` with a byte behind its machine code, so that it is known again."""
    (name,) = cubins(first)
    code = first.blobs[name] + b"!"
    sha = hashlib.sha256(code).hexdigest()
    value = json.loads(json.dumps(first.value).replace(name.removesuffix(".cubin"), sha))
    return JobResult("ok", value=value, blobs={**first.blobs, f"{sha}.cubin": code})


def test_the_same_kernel_is_not_compiled_again(zygotes: Zygotes, first: JobResult) -> None:
    (made,) = first.value["compiled"].values()
    assert f"{made['cubin']}.cubin" in first.blobs
    assert f"{made['ptx']}.ptx" in first.blobs
    known = marked(first)
    second = traced(zygotes, FILE, OTHER, known)
    assert cubins(second) == cubins(known) - cubins(first)
    (one,), (two,) = first.value["plan"]["kernels"].values(), second.value["plan"]["kernels"].values()
    assert two["ptx"] == one["ptx"]
    alike = {"cubin", "ttir", "ptx", "source", "assembly"}
    assert {k: v for k, v in two.items() if k not in alike} == {k: v for k, v in one.items() if k not in alike}


@pytest.mark.parametrize(("old", "new"), [
    ("0.), r < n)", "0.) + 1, r < n)"),
    ("B=1024)", "B=1024, num_warps=8)"),
    ("B=1024)", "B=1024, enable_fp_fusion=False)"),
])  # fmt: skip
def test_another_kernel_is(zygotes: Zygotes, first: JobResult, old: str, new: str) -> None:
    assert old in FILE
    changed, known = FILE.replace(old, new), marked(first)
    second = traced(zygotes, changed, 0, known)
    assert not cubins(second) & cubins(known)
    assert ptx(second) == ptx(traced(zygotes, changed, 0))


def test_a_file_with_the_name_of_its_trace_in_a_kernel_is_the_same(zygotes: Zygotes) -> None:
    """The name of a kernel's file is in its line table, which makes no difference."""
    one = traced(zygotes, FILE, OTHER)
    two = traced(zygotes, FILE, 0, one)
    assert cubins(one) == cubins(two)
    assert Disguise.of(OTHER).name.encode() in next(iter(v for k, v in two.blobs.items() if k.endswith(".ptx")))
    assert NAME.encode() in next(iter(v for k, v in two.blobs.items() if k.endswith(".ttir")))


def test_a_claim_that_is_no_table_or_too_long_is_left_out(first: JobResult) -> None:
    for claim in (None, [1], {"k": "x" * MAX_CLAIM_JSON}):
        assert compilations(JobResult("ok", value={"compiled": claim}, blobs=first.blobs)) == {}


def test_shapes_that_are_none_or_too_many_are_left_out(first: JobResult) -> None:
    def said(claim: object) -> dict[str, tuple[int, ...]]:
        return weights(JobResult("ok", value={"weights": claim}, blobs=first.blobs))

    assert said({"w": [3, 4], "scale": []}) == {"w": (3, 4), "scale": ()}
    many = {f"w{i}": [1] for i in range(MAX_CLAIM_JSON // 10)}
    for claim in (None, [1], {"w": "3"}, {"w": [-1]}, {"w": [10**400]}, {"w": [float("inf")]}, many):
        assert said(claim) == {}
