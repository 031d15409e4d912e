"""The parts behind a CUDA launch: accesses from PTX, facts from a cubin, host values, limits, places of errors."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from verifier.plan import cuda_abi, cuda_diagnose, cuda_image, cuda_values, fakecuda, nvrtc, ptx
from verifier.plan.cuda_abi import KernelFacts
from verifier.plan.cuda_image import Geometry
from verifier.plan.cuda_launch import CudaHost
from verifier.plan.cuda_options import ProgramOptions, architecture, command_line
from verifier.plan.driver import Kernels
from verifier.plan.record import Recorder, Untraceable
from verifier.plan.textutil import shown
from verifier.target import get_target

needs_nvrtc = pytest.mark.skipif(not nvrtc.present(), reason=nvrtc.MISSING)
TARGET = get_target("sm_90a")
ASSEMBLY = """asm volatile("{ .reg .u64 t; cvta.to.global.u64 t, %0; st.global.f32 [t], %1;\\n}" :: "l"(a), "f"(1.f));
b[0] = c[0];"""
LAUNCHED = Geometry((1, 1, 1), (256, 1, 1))
FACTS = KernelFacts(sizes=(8,), registers=32, shared=0, max_threads=None)


def accesses(body: str, signature: str = "float* a, float* b, float* c, long long n") -> list[str]:
    made = nvrtc.load().compile(
        f'extern "C" __global__ void k({signature}) {{ {body} }}', options=["--gpu-architecture=sm_90a"]
    )
    return [p.access for p in cuda_abi.parameters(made.cubin, made.ptx, "k")]


@needs_nvrtc
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("b[n] = a[n];", ["load", "store"]),
        ("a[n] += 1.f;", ["both", "none"]),
        ("atomicAdd(b, a[n]);", ["load", "both"]),
        ("float* p = n ? a : b; p[0] = c[0];", ["store", "store", "load"]),
        ("for (int i = 0; i < n; i++) { a[i] = *b; b += n; }", ["store", "load"]),
        ("float* t[2] = {a, b}; t[n & 1][0] = 1.f;", ["store", "store"]),
        (ASSEMBLY, ["store", "store", "load"]),
    ],
)  # fmt: skip
def test_accesses_follow_the_pointers(body: str, expected: list[str]) -> None:
    assert accesses(body)[: len(expected)] == expected


@needs_nvrtc
def test_a_call_that_stays_a_call_makes_every_pointer_unknown() -> None:
    source = """__device__ __noinline__ void set(float* p) { p[0] = 1.f; }
    extern "C" __global__ void k(float* a, float* b, int n) { set(b); }"""
    made = nvrtc.load().compile(source, options=["--gpu-architecture=sm_90a"])
    assert [p.access for p in cuda_abi.parameters(made.cubin, made.ptx, "k")] == ["both", "both", "none"]


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks"),
    [(32, 256, 0, 8), (255, 64, 0, 4), (255, 32, 0, 8), (32, 32, 0, 32), (32, 32, 100_000, 2), (255, 1024, 0, 0)],
)
def test_resident_blocks(registers: int, threads: int, shared: int, blocks: int) -> None:
    """Figures of NVIDIA's occupancy calculator: blocks of few warps share the registers, warp by warp."""
    facts = replace(FACTS, registers=registers)
    assert cuda_image.resident_blocks(TARGET, facts, threads, shared) == blocks


def test_text_without_the_kernel_gives_nothing() -> None:
    assert ptx.parameters("", "k") is None
    assert ptx.parameters(".visible .entry k(.param .u64 k_param_0)\n{\n", "k") is not None
    assert ptx.parameters(".visible .entry other()\n{ ret; }", "k") is None


@needs_nvrtc
def test_facts_of_a_cubin() -> None:
    source = """extern "C" __global__ void __launch_bounds__(256) k(const float* a, int n, double d, bool q, short3 s) {
        __shared__ float held[100]; held[threadIdx.x] = a[n]; __syncthreads(); if (q) printf("%f", held[s.x] + d); }"""
    cubin = nvrtc.load().compile(source, options=["--gpu-architecture=sm_90a"]).cubin
    facts = cuda_abi.read_facts(cubin, "k")
    assert (facts.sizes, facts.shared, facts.max_threads) == ((8, 4, 8, 1, 6), 400, 256)
    assert 8 <= facts.registers <= 255
    with pytest.raises(cuda_abi.CubinError, match="no kernel 'other'"):
        cuda_abi.read_facts(cubin, "other")
    for size in (0, 10, 64, len(cubin) // 2):
        with pytest.raises(cuda_abi.CubinError):
            cuda_abi.read_facts(cubin[:size], "k")


@pytest.mark.parametrize(
    ("value", "kind", "size", "number"),
    [
        (7, "int", 8, 7),
        (True, "int", 1, 1),
        (1.5, "float", 8, 1.5),
        (np.float32(0.1), "float", 4, float(np.float32(0.1))),
        (np.float16(1.0), "half", 2, 0x3C00),
        (np.uint8(200), "int", 1, 200),
        (ctypes.c_void_p(None), "int", 8, 0),
        (ctypes.c_float(2.0), "float", 4, 2.0),
        (ctypes.c_short(-3), "int", 2, -3),
    ],
)
def test_host_values_have_their_sizes(value: object, kind: str, size: int, number: float) -> None:
    found = cuda_values.host_value(value)
    assert found is not None
    assert (found.kind, found.size, found.value) == (kind, size, number)


@pytest.mark.parametrize("value", [None, "x", b"x", 1j, [1], np.zeros(3), np.complex64(1)])
def test_other_values_are_no_arguments(value: object) -> None:
    assert cuda_values.host_value(value) is None


@pytest.mark.parametrize(
    ("change", "facts", "words"),
    [
        ({"block": (32, 64, 1)}, FACTS, "2048 threads"),
        ({"block": (1, 1, 128)}, FACTS, "z = 128"),
        ({"block": (1024, 1, 1)}, replace(FACTS, registers=72), "too many resources"),
        ({"shared": 232_000}, replace(FACTS, shared=4096), "4096 of static"),
        ({"cluster": (32, 1, 1)}, FACTS, "a cluster of 32"),
        ({}, replace(FACTS, max_threads=128), "__launch_bounds__"),
    ],
)
def test_limits_of_the_target(change: dict[str, int], facts: KernelFacts, words: str) -> None:
    assert words in str(cuda_image.refusal(TARGET, facts, replace(LAUNCHED, **change), "k"))  # type: ignore[arg-type]
    assert cuda_image.refusal(TARGET, FACTS, LAUNCHED, "k") is None


def test_names_for_people() -> None:
    assert [shown(n) for n in ("add", "_Z5scaleIfLi8EEvPT_i", "_ZN2ab4copyEPf", "_Z")] == ["add", "scale", "ab", "_Z"]


def test_an_architecture_that_the_target_cannot_load_is_refused() -> None:
    assert [architecture(a, TARGET) for a in (None, "sm_90", "sm_90a", "compute_90")] == [
        "sm_90",
        "sm_90",
        "sm_90a",
        "sm_90",
    ]
    with pytest.raises(ValueError, match="sm_80"):
        architecture("sm_80", TARGET)


def test_options_reach_the_compiler() -> None:
    options = ProgramOptions(use_fast_math=True, fma=False, define_macro=[("N", "4"), "FLAG"], max_register_count=64)
    line = command_line(options, TARGET)
    assert {"--use_fast_math", "--fmad=false", "--define-macro=N=4", "--define-macro=FLAG", "--maxrregcount=64"} <= set(
        line
    )


LOG = 'prog(3): error: identifier "q" is undefined\n      y = q;\n          ^\n\n1 error detected in the compilation.'
PROGRAM = "int x;\nvoid f() {\n    y = q;\n}\n"


@pytest.mark.parametrize(
    ("source", "line", "column"),
    [
        (f"import torch\nCODE = '''{PROGRAM}'''\n", 4, 8),
        ("A = 'int x;'\nB = '''void f() {\n      y = q;\n'''", 3, 10),
        ("CODE = make()", None, None),
        ("y = q;\ny = q;", None, None),
    ],
)
def test_an_error_is_placed_in_the_python_file(source: str, line: int | None, column: int | None) -> None:
    message, *place = cuda_diagnose.explain(nvrtc.CudaCompileError(LOG, PROGRAM, "prog"), source)
    assert place == [line, column]
    assert message.startswith('identifier "q" is undefined')
    assert line is not None or "line 3 of the CUDA source: `y = q;`" in message


def test_without_the_compiler_the_file_is_untraceable_with_advice(tmp_path: Path) -> None:
    def absent() -> NoReturn:
        raise nvrtc.NvrtcMissingError

    recorder = Recorder(fakecuda.fake_mode(), "candidate.py")
    host = CudaHost(TARGET, recorder, Kernels(), compiler=absent)
    with pytest.raises(Untraceable):
        host.compile("", ())
    assert recorder.blockers[0]["code"] == "no-nvrtc"
    assert "pip install 'warpsmith[cuda]'" in recorder.blockers[0]["message"]
