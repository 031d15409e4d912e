"""End to end on a traced candidate: plan and cubins in, reports, estimates and advice out."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest

from verifier.plan.reader import PlanError
from verifier.profile.cubin import CubinError, disassemble, machine_code, read_resources, write_cubin
from verifier.profile.job import profile_job
from verifier.target import get_target
from verifier.verdict import Diagnostic, Estimate, KernelReport, LaunchReport

N = 1024


@pytest.fixture(scope="module")
def value(traced: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    own, base = traced["ModelNew"], traced["Reference"]
    blobs = {**own.blobs, **{f"base/{k}": v for k, v in base.blobs.items()}}
    payload = {"target": "sm_90a", "plan": own.plan, "base": base.plan}
    return profile_job(payload, blobs, tmp_path_factory.mktemp("job"))[0]


def test_kernel_reports(value: dict[str, Any]) -> None:
    reports = {(k.name, k.shared_bytes): k for k in map(KernelReport.model_validate, value["kernels"])}
    assert {name for name, _ in reports} == {"matmul_kernel", "softmax_kernel"}
    large = max((k for k in reports.values() if k.name == "matmul_kernel"), key=lambda k: k.shared_bytes)
    assert large.instructions["tensor HGMMA"] > 0
    assert any(k.startswith("async copy") for k in large.instructions)
    assert large.shared_bytes == 3 * 2 * 128 * 64 * 2
    assert 0 < large.occupancy <= 1


def test_launches_take_the_fastest_alternative(value: dict[str, Any]) -> None:
    matmul, softmax = map(LaunchReport.model_validate, value["launches"])
    assert matmul.alternatives == 2
    assert matmul.grid == (N // 128, N // 128, 1)
    assert matmul.waves < 1
    assert softmax.grid == (N, 1, 1)
    source = (Path(__file__).parent / "candidate.py").read_text().splitlines()
    assert matmul.line is not None
    assert "matmul_kernel[grid]" in source[matmul.line - 1]


def test_estimate_counts_every_step_and_the_base(value: dict[str, Any]) -> None:
    (found,) = map(Estimate.model_validate, value["estimates"])
    names = [launch.name for launch in found.launches]
    assert [n.split(" ")[0] for n in names] == ["matmul_kernel", "softmax_kernel", "relu"]
    assert "BM: 128" in names[0]
    assert "None" not in names[0]
    assert found.seconds == pytest.approx(sum(launch.seconds for launch in found.launches))
    assert found.launches[0].flops >= 2 * N**3
    assert found.launches[1].bytes == N * N * 2  # the matmul's output is still in L2; only the result goes out
    assert 1e-6 < found.base_seconds < 1e-3
    assert found.seconds < 1e-3


def test_advice_is_ranked_and_concrete(value: dict[str, Any]) -> None:
    advice = [Diagnostic.model_validate(d) for d in value["diagnosis"]]
    codes = [d.code for d in advice]
    assert "launch-bound" in codes
    assert "few-blocks" in codes
    few = next(d for d in advice if d.code == "few-blocks")
    assert "64 programs for 132 multiprocessors" in few.message
    assert all(d.severity == "advice" and len(d.message) < 700 for d in advice)


def test_without_a_base_there_is_no_base_time(traced: dict[str, Any], tmp_path: Path) -> None:
    base = traced["Reference"]
    found = profile_job({"target": "sm_90a", "plan": base.plan, "base": None}, base.blobs, tmp_path)[0]
    assert found["kernels"] == found["launches"] == []
    assert found["estimates"][0]["base_seconds"] == 0
    assert {launch["name"] for launch in found["estimates"][0]["launches"]} >= {"softmax", "relu"}
    assert any(d["code"] == "library-share" for d in found["diagnosis"])


def test_cubin_of_a_real_kernel(traced: dict[str, Any], tmp_path: Path) -> None:
    plan = traced["ModelNew"].plan
    image = next(k for k in plan["kernels"].values() if k["name"] == "softmax_kernel")
    path = write_cubin(traced["ModelNew"].blobs[f"{image['cubin']}.cubin"], tmp_path, "real")
    resources = read_resources(path, image["name"])
    assert 8 <= resources.registers <= 255
    assert resources.stack == 0
    code = machine_code(path.read_bytes(), image["name"])
    (sass,) = disassemble([code], get_target("h200"), tmp_path)
    assert sass.instructions["sfu"] >= 1
    assert sass.tensor == {}
    assert sass.loops == ()
    with pytest.raises(CubinError, match="no kernel"):
        read_resources(path, "another")
    with pytest.raises(CubinError, match="no code of a kernel 'another'"):
        machine_code(path.read_bytes(), "another")


def test_one_run_reads_many_kernels(traced: dict[str, Any], tmp_path: Path) -> None:
    own = traced["ModelNew"]
    images = own.plan["kernels"].values()
    codes = [machine_code(own.blobs[f"{image['cubin']}.cubin"], image["name"]) for image in images]
    together = disassemble(codes, get_target("h200"), tmp_path)
    alone = [disassemble([code], get_target("h200"), tmp_path)[0] for code in codes]
    assert [s.instructions for s in together] == [s.instructions for s in alone]
    assert [[(x.depth, x.instructions) for x in s.loops] for s in together] == [
        [(x.depth, x.instructions) for x in s.loops] for s in alone
    ]
    assert len(codes) == 3


def test_truncated_cubin_is_a_typed_error(traced: dict[str, Any], tmp_path: Path) -> None:
    name, data = next((n, d) for n, d in traced["ModelNew"].blobs.items() if n.endswith(".cubin"))
    for keep in (64, 200, len(data) // 2):
        path = write_cubin(data[:keep], tmp_path, name)
        with pytest.raises(CubinError):
            read_resources(path, "matmul_kernel")
        with pytest.raises(CubinError):
            machine_code(data[:keep], "matmul_kernel")


def test_code_that_is_none_is_a_typed_error(tmp_path: Path) -> None:
    for code in (bytes(16), b"\xff" * 64, bytes(range(256))):
        with pytest.raises(CubinError):
            disassemble([code], get_target("h200"), tmp_path)


def test_malformed_plans_and_unreadable_kernels(traced: dict[str, Any], tmp_path: Path) -> None:
    own = traced["ModelNew"]
    with pytest.raises(PlanError):
        profile_job({"target": "sm_90a", "plan": {"format": 1}, "base": None}, own.blobs, tmp_path)
    with pytest.raises(PlanError):
        profile_job({"target": "sm_90a", "plan": own.plan, "base": None}, {}, tmp_path)
    plan, blobs = copy.deepcopy(own.plan), dict(own.blobs)
    fake = b"\x7fELF" + bytes(300)
    sha = hashlib.sha256(fake).hexdigest()
    old = next(iter(plan["kernels"]))
    plan["kernels"][sha] = {**plan["kernels"].pop(old), "cubin": sha}
    blobs[f"{sha}.cubin"] = fake
    for program in plan["programs"]:
        for step in program["forward"]:
            for alternative in step.get("alternatives", []):
                alternative["kernel"] = sha if alternative["kernel"] == old else alternative["kernel"]
    with pytest.raises((PlanError, CubinError)):  # the reader or the tool, whoever looks first
        profile_job({"target": "sm_90a", "plan": plan, "base": None}, blobs, tmp_path)
