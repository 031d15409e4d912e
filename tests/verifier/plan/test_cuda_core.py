"""Candidates that write CUDA C++ and launch it through cuda.core or CuPy: what is recorded and what is refused."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from verifier.plan import nvrtc
from verifier.plan.arguments import NullArg, PointerArg, ScalarFloatArg, ScalarIntArg
from verifier.plan.reader import PlanError, read_plan
from verifier.plan.schema import KernelImage, LaunchStep

pytestmark = pytest.mark.skipif(not nvrtc.present(), reason=nvrtc.MISSING)

HEAD = """import ctypes, torch, torch.nn as nn, numpy as np
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch
dev = Device(); dev.set_current()
def build(code, name, options=None, names=()):
    program = Program(code, code_type="c++", options=options or ProgramOptions(std="c++17", arch="sm_90a"))
    return program.compile("cubin", name_expressions=names).get_kernel(name)
def run(kernel, grid, block, *args, **more):
    launch(torch.cuda.current_stream(), LaunchConfig(grid=grid, block=block, **more), kernel, *args)
"""
"""Lines 1 to 8 of every candidate."""

SCALE = (
    HEAD
    + '''CODE = r"""
extern "C" __global__ void scale(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * a;
}
"""
kernel = build(CODE, "scale")
class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        run(kernel, 256, 256, x.data_ptr(), y.data_ptr(), np.float32(0.5), x.numel())
        return y
'''
)
CALL = "run(kernel, 256, 256, x.data_ptr(), y.data_ptr(), np.float32(0.5), x.numel())"


def launched(traced: Any) -> tuple[LaunchStep, KernelImage]:
    (step,) = traced.plan.programs[0].launches()
    return step, traced.plan.kernels[step.kernel]


def refused(trace: Callable[..., Any], source: str) -> tuple[str, str, int | None]:
    """(status, message, line) of the first diagnostic."""
    traced = trace(source, prelude="")
    return traced.status, traced.diagnostics[0]["message"], traced.diagnostics[0]["line"]


def test_a_launch_becomes_a_step_with_its_abi(trace: Callable[..., Any]) -> None:
    traced = trace(SCALE, prelude="")
    step, image = launched(traced)
    x, y, a, n = step.args
    assert isinstance(x, PointerArg)
    assert isinstance(y, PointerArg)
    assert (x.storage, y.storage) == (0, 1)
    assert isinstance(a, ScalarFloatArg)
    assert (a.type, a.v) == ("fp32", 0.5)
    assert isinstance(n, ScalarIntArg)
    assert (n.type, n.v) == ("i32", 65536)
    assert (step.grid, image.block, image.num_warps, step.line) == ((256, 1, 1), (256, 1, 1), 8, 8)
    assert (image.language, image.name, image.line, image.ttir) == ("cuda", "scale", 10, None)
    assert [p.access for p in image.params] == ["load", "store", "none", "none"]
    assert {f"{image.cubin}.cubin", f"{image.ptx}.ptx"} <= set(traced.blobs)
    assert traced.errors() == set()
    assert traced.plan.programs[0].mutated_inputs == ()


def test_templates_by_name_expression_views_and_wide_scalars(trace: Callable[..., Any]) -> None:
    source = SCALE.replace('extern "C" __global__', "template <typename T> __global__").replace("float*", "T*")
    source = source.replace('build(CODE, "scale")', 'build(CODE, "scale<float>", names=("scale<float>",))')
    source = source.replace(
        CALL, "run(kernel, (8, 2), (32, 4, 2), x[1:].data_ptr(), y.data_ptr(), ctypes.c_float(2), np.int64(7))"
    )
    step, image = launched(trace(source, prelude=""))
    assert (image.title, image.name != "scale") == ("scale", True)
    assert (step.grid, image.block) == ((8, 2, 1), (32, 4, 2))
    assert step.args[0].offset == 4096  # type: ignore[union-attr]
    assert step.args[3].v == 7  # type: ignore[union-attr]


def test_headers_of_the_toolkit(trace: Callable[..., Any]) -> None:
    source = SCALE.replace('r"""\n', 'r"""\n#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include <mma.h>\n', 1)
    source = source.replace("= x[i] * a", "= __bfloat162float(__float2bfloat16(x[i]))")
    traced = trace(source, prelude="")
    assert launched(traced)[1].name == "scale"
    assert [d["code"] for d in traced.diagnostics] == ["include-path"]


def test_geometry_beyond_a_plain_grid(trace: Callable[..., Any]) -> None:
    """A grid of clusters, opted-in shared memory, a cooperative launch, and a null pointer."""
    source = SCALE.replace(CALL, """from cuda.bindings import driver
        big = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.cuKernelSetAttribute(big, 100_000, kernel.handle, 0)
        run(kernel, 33, 128, x.data_ptr(), y.data_ptr(), np.float32(1), 1, cluster=4, shmem_size=100_000, is_cooperative=True)
        run(kernel, 1, 128, 0, y.data_ptr(), np.float32(1), 0)""")  # fmt: skip
    traced = trace(source, prelude="")
    first, second = traced.plan.programs[0].launches()
    image = traced.plan.kernels[first.kernel]
    assert (first.grid, image.cluster, image.shared, image.cooperative) == ((132, 1, 1), (4, 1, 1), 100_000, True)
    assert first.kernel != second.kernel
    assert image.cubin == traced.plan.kernels[second.kernel].cubin
    assert isinstance(second.args[0], NullArg)


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        ("run(kernel, 256, 256, x.data_ptr(), y.data_ptr(), np.float32(0.5))", "runtime_error", "takes 4 parameters, 3 given"),
        ("run(kernel, 256, 256, x.data_ptr(), y.data_ptr(), 0.5, 1)", "runtime_error", "pass numpy.float32 or ctypes.c_float, not Python float"),
        ("run(kernel, 256, 256, x.data_ptr(), ctypes.c_int(3), np.float32(1), 1)", "runtime_error", "it takes 8 bytes, but ctypes.c_int has 4"),
        ("run(kernel, 256, 256, x.data_ptr(), y.data_ptr(), np.float32(1), 1 << 40)", "runtime_error", "does not fit its 4 bytes"),
        ("run(kernel, 256, 256, x, y.data_ptr(), np.float32(1), 1)", "runtime_error", "unsupported type"),
        ("run(kernel, 256, 256, 12345, y.data_ptr(), np.float32(1), 1)", "runtime_error", "points to no tensor"),
        ("run(kernel, 256, 256, x.data_ptr() + x.nbytes, y.data_ptr(), np.float32(1), 1)", "runtime_error", "points outside every tensor"),
        ("run(kernel, 256, 256, x.data_ptr(), torch.empty(4).data_ptr(), np.float32(1), 1)", "runtime_error", "points to host memory"),
        ("run(kernel, 256, 2048, x.data_ptr(), y.data_ptr(), np.float32(1), 1)", "over_limits", "x = 2048 is outside 1 to 1024"),
        ("run(kernel, (1, 70000), 256, x.data_ptr(), y.data_ptr(), np.float32(1), 1)", "over_limits", "y = 70000 is outside 1 to 65535"),
        ("run(kernel, 1, 256, x.data_ptr(), y.data_ptr(), np.float32(1), 1, shmem_size=300_000)", "over_limits", "300000 bytes of dynamic"),
        ("run(kernel, 1, 256, x.data_ptr(), y.data_ptr(), np.float32(1), 1, shmem_size=60_000)", "over_limits", "opt in first"),
        ("run(kernel, 5000, 256, x.data_ptr(), y.data_ptr(), np.float32(1), 1, is_cooperative=True)", "over_limits", "1056 fit at once"),
    ],
)  # fmt: skip
def test_a_wrong_launch_is_refused_with_its_line(trace: Callable[..., Any], call: str, status: str, words: str) -> None:
    found, message, line = refused(trace, SCALE.replace(CALL, call))
    assert (found, line) == (status, 8)
    assert words in message


def test_registers_times_threads_and_launch_bounds(trace: Callable[..., Any]) -> None:
    heavy = SCALE.replace(
        "y[i] = x[i] * a;",
        "{ float v[150]; for (int k = 0; k < 150; k++) v[k] = x[i + k]; for (int k = 0; k < 150; k++) y[i + k] = v[149 - k] * a; }",
    )
    status, message, _ = refused(trace, heavy.replace("256, 256,", "256, 1024,"))
    assert status == "over_limits"
    assert "too many resources requested for launch" in message
    bounded = SCALE.replace("__global__ void", "__global__ void __launch_bounds__(128)")
    assert "__launch_bounds__ allow 128" in refused(trace, bounded)[1]


def test_a_compile_error_has_the_line_of_the_python_file(trace: Callable[..., Any]) -> None:
    traced = trace(SCALE.replace("x[i] * a", "x[i] * b"), prelude="")
    (found,) = traced.diagnostics
    assert (traced.status, found["code"], found["line"]) == ("compile_error", "compile-error", 12)
    assert found["message"] == 'identifier "b" is undefined'
    assert found["excerpt"] == "    if (i < n) y[i] = x[i] * b;\n                             ^"


def test_what_a_plan_cannot_hold_is_untraceable_by_name(trace: Callable[..., Any]) -> None:
    loads = "from cuda.core import ObjectCode\nkernel = ObjectCode.from_cubin(b'x').get_kernel('k')"
    cases = {
        "prebuilt-code": SCALE.replace('kernel = build(CODE, "scale")', loads),
        "unsupported-cuda-core": SCALE.replace(
            "y = torch.empty_like(x)", "y = dev.allocate(4, stream=dev.default_stream)"
        ),
        "struct-parameter": SCALE.replace("float a,", "float4 a,").replace("* a;", "* a.x;"),
    }
    for code, source in cases.items():
        traced = trace(source, prelude="")
        assert (traced.status, traced.diagnostics[0]["code"]) == ("untraceable", code)


def test_a_kernel_that_does_not_exist_names_those_that_do(trace: Callable[..., Any]) -> None:
    status, message, _ = refused(trace, SCALE.replace('build(CODE, "scale")', 'build(CODE, "scales")'))
    assert status == "runtime_error"
    assert "it has" in message or "the program has ['scale']" in message


def test_writable_globals_and_decoys_are_found(trace: Callable[..., Any]) -> None:
    keeps = SCALE.replace('extern "C"', '__device__ float last[64];\nextern "C"').replace(
        "* a;", "* a; last[i & 63] = a;"
    )
    assert "writable-globals" in trace(keeps, prelude="").errors()
    decoy = SCALE.replace("return y", "return x * 0.5")
    assert "kernel-not-used" in trace(decoy, prelude="").errors()


CUPY = """import cupy, torch, torch.nn as nn, numpy as np
kernel = cupy.RawKernel(r'''
extern "C" __global__ void scale(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * a;
}
''', "scale", options=("--use_fast_math",))
module = cupy.RawModule(code=r'template <int N> __global__ void add(float* y) { y[blockIdx.x * blockDim.x + threadIdx.x] += N; }',
                        options=("-std=c++17",), name_expressions=("add<3>",))
class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            kernel((256,), (256,), (x.data_ptr(), y.data_ptr(), np.float32(0.5), np.int32(x.numel())))
            module.get_function("add<3>")((256,), (256,), (cupy.asarray(y),))
        return y
"""


def test_cupy_by_the_same_door(trace: Callable[..., Any]) -> None:
    traced = trace(CUPY, prelude="")
    first, second = traced.plan.programs[0].launches()
    assert [traced.plan.kernels[s.kernel].title for s in (first, second)] == ["scale", "add"]
    assert [p.access for p in traced.plan.kernels[second.kernel].params] == ["both"]
    assert traced.errors() == set()


def test_cupy_arrays_are_untraceable(trace: Callable[..., Any]) -> None:
    status, message, _ = refused(trace, CUPY.replace("y = torch.empty_like(x)", "y = cupy.zeros(4)"))
    assert (status, "cupy.zeros" in message) == ("untraceable", True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block": [512, 1, 1]}, "key does not match"),
        ({"num_warps": 4}, "key does not match|num_warps"),
        ({"block": None}, "without block"),
        ({"shared": 1 << 19}, "key does not match"),
        ({"global_bytes": 4}, "global_bytes"),
        ({"language": "triton"}, "no TTIR"),
    ],
)
def test_the_reader_believes_the_cubin(trace: Callable[..., Any], change: dict[str, Any], words: str) -> None:
    if not KEPT:
        KEPT.append(trace(SCALE, prelude=""))
    value = copy.deepcopy(KEPT[0].value)
    (image,) = value["kernels"].values()
    image.update(change)
    with pytest.raises(PlanError, match=words):
        read_plan(value, KEPT[0].blobs)


def test_the_reader_checks_types_and_accesses(trace: Callable[..., Any]) -> None:
    traced = trace(SCALE, prelude="")
    for change in ({"access": "store"}, {"size": 4}, {"type": "i64"}):
        value = copy.deepcopy(traced.value)
        (image,) = value["kernels"].values()
        image["params"][0].update(change)
        with pytest.raises(PlanError, match="parameters differ"):
            read_plan(value, traced.blobs)


KEPT: list[Any] = []
"""One traced file, shared by the reader's tests."""
