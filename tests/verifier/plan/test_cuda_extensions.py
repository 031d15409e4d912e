"""torch's C++ extensions in a trace: device code pulled out and compiled, host code never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verifier.plan import nvrtc
from verifier.plan.device_code import extract
from verifier.plan.load_inline import check
from verifier.target import get_target

needs_nvrtc = pytest.mark.skipif(not nvrtc.present(), reason=nvrtc.MISSING)
TARGET = get_target("sm_90a")

SOURCE = r"""
#include <torch/extension.h>
#include <cuda_runtime.h>
#include <vector>
#include <cfloat>
#define CHECK(x) TORCH_CHECK(x.is_cuda(), "{ not a brace")
constexpr int kThreads = 256;
static const float kScale = 2.0f;
struct Pair { float a; int b; };
namespace detail {
__device__ __forceinline__ float twice(float v) { return fmaxf(v, -FLT_MAX) * kScale; }
at::Tensor helper(at::Tensor t) { return t.contiguous(); }  // } host
}  // namespace detail
template <typename scalar_t>
__global__ void any_kernel(const scalar_t* x, scalar_t* y) { y[threadIdx.x] = std::max(x[threadIdx.x], scalar_t(0)); }
__global__ void twice_kernel(const float* x, float* y, int n) {
    __shared__ float kept[kThreads];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    kept[threadIdx.x] = i < n ? x[i] : 0.f;
    __syncthreads();
    if (i < n) y[i] = detail::twice(kept[threadIdx.x]);
}
torch::Tensor twice_cuda(torch::Tensor x) {
    auto y = torch::empty_like(x);
    std::vector<int64_t> sizes = {1, 2};
    any_kernel<scalar_t><<<1, 256>>>(x.data_ptr<scalar_t>(), y.data_ptr<scalar_t>());
    twice_kernel<<<(x.numel() + 255) / 256, 256>>>(x.data_ptr<float>(), y.data_ptr<float>(), x.numel());
    return y;
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("twice_cuda", &twice_cuda); }
"""

CANDIDATE = (
    """import torch, torch.nn as nn
from torch.utils.cpp_extension import load_inline
cuda = r'''"""
    + SOURCE
    + """'''
ext = load_inline(name="ext", cpp_sources="torch::Tensor twice_cuda(torch::Tensor x);", cuda_sources=[cuda],
                  functions=["twice_cuda"], extra_cuda_cflags=["-O3", "--use_fast_math"], verbose=False)
class ModelNew(nn.Module):
    def forward(self, x): return ext.twice_cuda(x)
"""
)


def test_extraction_keeps_device_code_and_line_numbers() -> None:
    code = extract(SOURCE)
    body = code.text.split('#line 1 "cuda_source"\n')[1]
    assert len(body.splitlines()) == len(SOURCE.splitlines())
    kept = {i: line.strip() for i, line in enumerate(body.splitlines(), 1) if line.strip()}
    assert set(kept) == set(range(6, 23))
    assert kept[12] == "// } host"
    assert kept[13] == "}  // namespace detail"
    assert "any_kernel" in kept[15]
    assert {"twice_cuda", "helper", "PYBIND11_MODULE"} <= code.dropped
    assert {"torch/extension.h", "vector"} <= code.headers


def test_a_source_without_kernels_is_empty() -> None:
    assert extract("#include <torch/extension.h>\nint main() { return 0; }").empty
    assert extract('const char* s = "__global__ void k() {}";').empty


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{{{{",
        "}}}}",
        "#include <",
        'extern "C" {',
        "namespace a { __global__ void k(",
        'R"(',
        "/*",
        "__global__",
        "a{b{c" * 500,
    ],
)
def test_broken_text_is_no_crash(text: str) -> None:
    extract(text)


@needs_nvrtc
def test_good_device_code_is_profiled() -> None:
    found = check(SOURCE, TARGET)
    assert found.error is None
    assert {(k.name, k.shared, k.spill) for k in found.kernels} == {("twice_kernel", 1024, 0), ("any_kernel", 0, 0)}
    assert all(4 <= k.registers <= 64 for k in found.kernels)


@needs_nvrtc
@pytest.mark.parametrize(
    ("old", "new", "certain"),
    [
        ("detail::twice(kept", "detail::thrice(kept", True),
        ("if (i < n) y[i]", "if (i < n) y.x[i]", True),
        ("blockIdx.x * blockDim.x", "blockIdx.w * blockDim.x", True),
        ("    __syncthreads();", "    __syncthreads()", True),
        ("detail::twice(kept[threadIdx.x])", "twice_cuda(1)", False),
        ("#include <vector>", "#include <curand_kernel.h>\n__device__ curandState_t held;", False),
        ("detail::twice(kept[threadIdx.x])", "cudaGetLastError()", False),
        ("detail::twice(kept[threadIdx.x])", "std::clamp(x[i], 0.f, 1.f)", False),
    ],
)
def test_an_error_counts_only_where_the_source_is_at_fault(old: str, new: str, certain: bool) -> None:
    assert old in SOURCE
    found = check(SOURCE.replace(old, new), TARGET)
    assert found.error is not None
    assert found.certain is certain


@needs_nvrtc
def test_a_good_extension_is_untraceable_with_its_profile(trace: Callable[..., Any]) -> None:
    traced = trace(CANDIDATE, prelude="")
    assert traced.status == "untraceable"
    assert [d["code"] for d in traced.diagnostics] == ["native-code", "device-code", "device-code"]
    assert any("1024 bytes of static shared memory" in d["message"] for d in traced.diagnostics)


@needs_nvrtc
def test_a_bad_extension_is_a_compile_error_with_its_line(trace: Callable[..., Any]) -> None:
    traced = trace(CANDIDATE.replace("kept[threadIdx.x]);", "kept[threadIdx.q]);"), prelude="")
    (found,) = traced.diagnostics
    assert (traced.status, found["line"]) == ("compile_error", 23)
    assert found["message"] == 'class "uint3" has no member "q"'
    assert found["excerpt"].splitlines()[1].index("^") == found["excerpt"].splitlines()[0].index(".q") + 1


def test_host_code_alone_is_untraceable(trace: Callable[..., Any]) -> None:
    source = """import torch, torch.nn as nn
from torch.utils.cpp_extension import load_inline
ext = load_inline("ext", "int f() { return 1; }", functions=["f"])
class ModelNew(nn.Module):
    def forward(self, x): return x
"""
    traced = trace(source, prelude="")
    assert traced.status == "untraceable"
    assert [(d["code"], d["line"]) for d in traced.diagnostics] == [("native-code", 3)]
