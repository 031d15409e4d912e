"""Every target from trace to static profile: what the fake device answers, what is refused, what comes out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import triton

from verifier.plan import nvrtc
from verifier.plan.reader import PlanError, read_plan
from verifier.profile.cubin import parse_resources
from verifier.profile.job import profile_job
from verifier.target import TARGETS, Target, get_target

needs_nvrtc = pytest.mark.skipif(not nvrtc.present(), reason=nvrtc.MISSING)
DEVICES = ("a100", "h200", "b200")
HALF = {"kind": "tensor", "shape": [512, 512], "dtype": "float16", "stride": None}
MATMUL = """
@triton.jit
def mm(a, b, c, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    j = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for s in range(0, K, BK):
        x = tl.load(a + i[:, None] * K + (s + k)[None, :])
        acc = tl.dot(x, tl.load(b + (s + k)[:, None] * N + j[None, :]), acc)
    tl.store(c + i[:, None] * N + j[None, :], acc.to(tl.float16))
class ModelNew(nn.Module):
    def forward(self, a, b):
        c = torch.empty_like(a)
        mm[(4, 8)](a, b, c, 512, 512, BM=128, BN=64, BK=64, num_warps=4, num_stages=STAGES, num_ctas=CTAS)
        return c
"""
RELU = "class ModelNew(nn.Module):\n    def forward(self, x): return relu(x)\n"

Trace = Callable[..., Any]


def matmul(trace: Trace, device: str, stages: int = 2, ctas: int = 1) -> Any:
    body = MATMUL.replace("STAGES", str(stages)).replace("CTAS", str(ctas))
    return trace(body, [HALF, HALF], target=device)


def profiled(traced: Any, device: str, folder: Path) -> dict[str, Any]:
    assert traced.value is not None, (traced.status, traced.diagnostics)
    return profile_job({"target": device, "plan": traced.value, "base": None}, traced.blobs, folder)[0]


def dumped(traced: Any, folder: Path) -> tuple[int, int, int]:
    """Registers, stack and static shared memory of the only cubin, as `cuobjdump --dump-resource-usage` says."""
    ((_, data),) = ((name, data) for name, data in traced.blobs.items() if name.endswith(".cubin"))
    (image,) = traced.plan.kernels.values()
    (folder / "k.cubin").write_bytes(data)
    tool = triton.knobs.nvidia.cuobjdump.path
    told = subprocess.run([tool, "--dump-resource-usage", str(folder / "k.cubin")], capture_output=True, check=True)
    found = parse_resources(told.stdout.decode(), image.name)
    return found.registers, found.stack, found.shared


@pytest.mark.parametrize("device", DEVICES)
def test_relu(device: str, trace: Trace, tmp_path: Path) -> None:
    traced = trace(RELU, target=device)
    (kernel,) = profiled(traced, device, tmp_path)["kernels"]
    assert (kernel["registers"], kernel["spill_bytes"], kernel["shared_bytes"]) == dumped(traced, tmp_path)
    assert kernel["shared_bytes"] == 0
    assert kernel["instructions"]["load global 128"] > 0
    assert kernel["instructions"]["fp32"] >= 8  # the maximum of eight elements a thread
    assert (traced.plan.target, traced.plan.device) == (get_target(device).arch, device)


@pytest.mark.parametrize(("device", "mma"), [("a100", "HMMA"), ("h200", "HGMMA"), ("b200", "UTCHMMA")])
def test_matmul_on_tensor_cores(device: str, mma: str, trace: Trace, tmp_path: Path) -> None:
    traced = matmul(trace, device)
    told = profiled(traced, device, tmp_path)
    (kernel,) = told["kernels"]
    registers, stack, shared = dumped(traced, tmp_path)
    (image,) = traced.plan.kernels.values()
    counted = get_target(device).shared_counted if shared else 0
    assert (kernel["registers"], kernel["spill_bytes"]) == (registers, stack)
    assert kernel["shared_bytes"] == image.shared + shared - counted
    assert kernel["shared_bytes"] >= 2 * (128 * 64 + 64 * 64)
    assert [k for k in kernel["instructions"] if k.startswith("tensor ") and k != "tensor memory"] == [f"tensor {mma}"]
    (launch,) = told["estimates"][0]["launches"]
    assert launch["flops"] >= 2 * 512**3
    assert not [d for d in told["diagnosis"] if d["code"] == "no-tensor-core"]


def test_clusters_are_refused_where_there_are_none(trace: Trace) -> None:
    refused = matmul(trace, "a100", ctas=2)
    assert refused.status == "over_limits"
    assert "num_ctas" in refused.diagnostics[0]["message"]
    assert "num_ctas=2" in refused.source.splitlines()[refused.diagnostics[0]["line"] - 1]


@pytest.mark.parametrize("device", ["h200", "b200"])
def test_a_cluster_of_two(device: str, trace: Trace, tmp_path: Path) -> None:
    told = profiled(matmul(trace, device, ctas=2), device, tmp_path)
    assert told["kernels"][0]["num_ctas"] == 2
    assert any(k.startswith("tensor ") for k in told["kernels"][0]["instructions"])


TENSOR_DESCRIPTOR = """
@triton.jit
def cp(x, o, M, N, B: tl.constexpr):
    d = tl.make_tensor_descriptor(x, [M, N], [N, 1], [B, B])
    e = tl.make_tensor_descriptor(o, [M, N], [N, 1], [B, B])
    i, j = tl.program_id(0) * B, tl.program_id(1) * B
    e.store([i, j], d.load([i, j]) * 2.)
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
        cp[(8, 8)](x, o, 512, 512, B=64)
        return o
"""


@pytest.mark.parametrize(("device", "tma"), [("a100", False), ("h200", True), ("b200", True)])
def test_tensor_descriptors_are_tma_from_sm_90(device: str, tma: bool, trace: Trace, tmp_path: Path) -> None:
    traced = trace(TENSOR_DESCRIPTOR, [{**HALF, "dtype": "float32"}], target=device)
    (kernel,) = profiled(traced, device, tmp_path)["kernels"]
    assert ("tma" in kernel["instructions"]) is tma


@pytest.mark.parametrize(("device", "refused"), [("a100", True), ("h200", False), ("b200", False)])
def test_shared_memory_of_a_block(device: str, refused: bool, trace: Trace) -> None:
    traced = matmul(trace, device, stages=8)  # seven or eight times 24 KB
    if refused:
        assert traced.status == "over_limits"
        assert str(163 << 10) in traced.diagnostics[0]["message"]
    else:
        assert traced.status == "ok"


ASKS = """class ModelNew(nn.Module):
    def forward(self, x):
        p = torch.cuda.get_device_properties(0)
        major, minor = torch.cuda.get_device_capability()
        u = triton.runtime.driver.active.utils.get_device_properties(0)
        t = triton.runtime.driver.active.get_current_target()
        said = (torch.cuda.get_device_name(), 10 * major + minor, p.multi_processor_count, p.total_memory, t.arch,
                p.L2_cache_size, p.shared_memory_per_block_optin, u["max_shared_mem"], u["sm_clock_rate"],
                u["mem_clock_rate"], u["mem_bus_width"], p.clock_rate, torch.cuda.get_arch_list())
        assert said == WANTED, said
        return relu(x)
"""


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_the_fake_device_is_the_target(target: Target, trace: Trace) -> None:
    clock, memory = int(target.clock / 1e3), int(target.memory_clock / 1e3)
    wanted = (
        target.device_name, target.capability, target.sms, target.total_memory, target.capability, target.l2_bytes,
        target.shared_per_block, target.shared_per_block, clock, memory, target.memory_bus, clock,
        [f"sm_{target.capability}"],
    )  # fmt: skip
    traced = trace(ASKS.replace("WANTED", repr(wanted)), target=target.name)
    assert traced.status == "ok", traced.diagnostics


def test_a_plan_names_a_device_that_runs_it(trace: Trace) -> None:
    traced = trace(RELU, target="h100-pcie")
    assert read_plan({**traced.value, "device": None}, traced.blobs).device is None
    for wrong in ({"device": "a100"}, {"device": "h300"}, {"target": "sm_70"}, {"target": "sm_100"}):
        with pytest.raises(PlanError, match=r"device|target"):
            read_plan({**traced.value, **wrong}, traced.blobs)


CUDA = '''import torch, torch.nn as nn
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch
CODE = r"""
#include <mma.h>
using namespace nvcuda;
extern "C" __global__ void product(const half* a, const half* b, float* c) {
    __shared__ float held[256];
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> x;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> y;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> z;
    wmma::fill_fragment(z, 0.f);
    wmma::load_matrix_sync(x, a, 16);
    wmma::load_matrix_sync(y, b, 16);
    wmma::mma_sync(z, x, y, z);
    wmma::store_matrix_sync(held, z, 16, wmma::mem_row_major);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 32) c[i] = held[255 - i];
}
"""
kernel = Program(CODE, code_type="c++", options=ProgramOptions(std="c++17", arch=ARCH)).compile("cubin").get_kernel("product")
class ModelNew(nn.Module):
    def forward(self, a, b):
        c = torch.empty(16, 16, device="cuda")
        config = LaunchConfig(grid=2, block=32, cluster=CLUSTER)
        launch(torch.cuda.current_stream(), config, kernel, a.data_ptr(), b.data_ptr(), c.data_ptr())
        return c
'''  # noqa: E501


def cuda(trace: Trace, device: str, arch: str | None = None, cluster: int = 1) -> Any:
    source = CUDA.replace("ARCH", repr(arch)).replace("CLUSTER", str(cluster))
    tile = {**HALF, "shape": [16, 16]}
    return trace(source, [tile, tile], prelude="", target=device)


@needs_nvrtc
@pytest.mark.parametrize(("device", "arch"), [("a100", None), ("h200", "sm_90a"), ("b200", None), ("b200", "sm_100a")])
def test_cuda_on_tensor_cores(device: str, arch: str | None, trace: Trace, tmp_path: Path) -> None:
    traced = cuda(trace, device, arch)
    (kernel,) = profiled(traced, device, tmp_path)["kernels"]
    registers, stack, shared = dumped(traced, tmp_path)
    assert (kernel["registers"], kernel["spill_bytes"]) == (registers, stack)
    assert kernel["shared_bytes"] == shared - get_target(device).shared_counted == 1024
    assert kernel["instructions"]["tensor HMMA"] > 0
    (image,) = traced.plan.kernels.values()
    assert [(p.type, p.access) for p in image.params] == [("*void", "load"), ("*void", "load"), ("*void", "store")]


@needs_nvrtc
@pytest.mark.parametrize(("device", "arch"), [("a100", "sm_90a"), ("h200", "sm_80"), ("b200", "sm_90a")])
def test_cuda_for_another_architecture_is_refused(device: str, arch: str, trace: Trace) -> None:
    refused = cuda(trace, device, arch)
    assert refused.status != "ok"
    assert f"no kernel image for {get_target(device).arch}" in refused.diagnostics[0]["message"]


@needs_nvrtc
def test_cuda_clusters_need_sm_90(trace: Trace) -> None:
    refused = cuda(trace, "a100", cluster=2)
    assert refused.status == "over_limits"
    assert "a cluster of 2 blocks; 1 at most" in refused.diagnostics[0]["message"]
    assert cuda(trace, "b200", cluster=2).status == "ok"
