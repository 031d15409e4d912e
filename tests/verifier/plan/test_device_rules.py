"""The rules about device code, on PTX that NVRTC made of small kernels."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import triton

from verifier.plan import nvrtc
from verifier.plan.cuda_options import header_options
from verifier.plan.device_rules import check_device_code
from verifier.plan.ptx import variables

pytestmark = pytest.mark.skipif(not nvrtc.present(), reason=nvrtc.MISSING)

Compile = Callable[..., str]
HIDDEN = 'unsigned n; asm volatile("{{ {} atom.global.add.u32 %0, [a], 1; }}" : "=r"(n)); o[i] = n;'
"""Inline assembly with memory of its own."""
KEEPS = {
    "global": ("__device__ float last[64];", "o[i] = last[i]; last[i] = o[i + 1];"),
    "static": ("", "static __device__ float last; o[i] = last; last = o[i + 1];"),
    "atomic": ("__device__ int calls;", "o[i] = atomicAdd(&calls, 1);"),
    "by-a-function": (
        "__device__ float last[64]; __device__ __noinline__ void keep(float v) { last[threadIdx.x] = v; }",
        "float v = o[i]; keep(v); o[i] = v + 1;",
    ),
    "passed-to-a-function": (
        "__device__ float last[64]; __device__ __noinline__ void keep(float* p, float v) { p[threadIdx.x] = v; }",
        "keep(o[0] > 0 ? last : o, o[i]);",
    ),
    "constant": ("__constant__ float last[64];", "float* p = (float*)last + i; HIDE(p); o[i] = *p; *p = 1;"),
    "string": ("", 'char* p = (char*)"a string that is long enough"; HIDE(p); o[i] = p[i]; p[i] = o[i + 1];'),
    "through-shared-memory": (
        "__device__ float last[64];",
        "__shared__ float* p[1]; p[0] = last; __syncthreads(); float* q = p[0]; HIDE(q); o[i] = *q; *q = 2;",
    ),
    "in-one-line": ("", HIDDEN.format(".global .u32 a;")),
    "two-at-once": ("", HIDDEN.format(".global .align 4 .u32 b[2] = {1, 2}, a = 3;")),
    "after-another": ("", HIDDEN.format(".shared .u32 s; .global\\n.u32 a;")),
}
KEEPS_NOTHING = {
    "plain": ("", "o[i] *= 2;"),
    "sine": ("", "o[i] = sinf(o[i + 1]);"),
    "table": ("__device__ const float table[4] = {1, 2, 3, 4};", "o[i] = table[i & 3];"),
    "constants": ("__constant__ float table[4] = {1, 2, 3, 4};", "o[i] = table[i & 3];"),
    "print": ("", 'printf("%f", o[i]);'),
    "declared": ("__device__ float never_used[64];", "o[i] = 1;"),
    "barrier": (
        "#include <cuda/barrier>\n",
        "__shared__ cuda::barrier<cuda::thread_scope_block> b; if (i == 0) init(&b, 64); __syncthreads(); "
        "b.arrive_and_wait(); o[i] = 1;",
    ),
    "groups": ("#include <cooperative_groups.h>\n", "cooperative_groups::this_grid().sync(); o[i] = 1;"),
}
RULES = {
    "reads-clock": "o[i] = clock64();",
    "reads-launch-number": 'unsigned long long n; asm volatile("mov.u64 %0, %%gridid;" : "=l"(n)); o[i] = n & 1;',
    "device-heap": "float* p = (float*)malloc(16); o[i] = p[1]; p[1] = 2; free(p);",
    "discards-memory": 'asm volatile("discard.global.L2 [%0], 128;" :: "l"(o) : "memory");',
    "sleeps": "__nanosleep(100); o[i] = 1;",
    "reads-place": 'unsigned n; asm volatile("mov.u32 %0, %%smid;" : "=r"(n)); o[i] = n;',
    "keeps-in-cache": 'asm volatile("prefetch.global.L2::evict_last [%0];" :: "l"(o)); o[i] = 1;',
}

_GLOBAL = ".visible .global .align 4 .u32 kept;"
_TO_SHARED = "st.shared.v2.b32 [s], {r1, r2}; ld.shared.v2.b32 {r3, r4}, [s];"
SPELLINGS = {
    "comment-in-a-string": (_GLOBAL, '.pragma "/*"; st.global.u32 [kept], 7; .pragma "*/";'),
    "string-without-escapes": (_GLOBAL, '.pragma "a\\"; st.global.u32 [kept], 7; //";'),
    "string-over-lines": (_GLOBAL, '.pragma "a\n// "; st.global.u32 [kept], 7;'),
    "brace-in-a-string": (_GLOBAL, '.pragma "}"; st.global.u32 [kept], 7;'),
    "behind-a-line-table": (_GLOBAL, ".loc 1 5 0 st.global.u32 [kept], 7;"),
    "behind-labels": (_GLOBAL, "a: b: st.global.u32 [kept], 7;"),
    "blanks-in-a-predicate": (_GLOBAL, "@ ! p1 st.global.u32 [kept], 7;"),
    "blanks-in-an-opcode": (_GLOBAL, "st .global .u32 [kept], 7;"),
    "no-blank-before-a-bracket": (_GLOBAL, "@p1 st.global.u32[kept], 7;"),
    "no-blank-in-a-declaration": (".visible.global.align 4 .u32 kept;", "st.global.u32 [kept], 7;"),
    "named-like-a-register": (".visible .global .u32 %kept;", "st.global.u32 [%kept], 7;"),
    "second-function": (
        f"{_GLOBAL} .func f();", "call f; ret; } .func f() { .reg .b32 r; mov.u32 r, 7; st.global.u32 [kept], r;"
    ),
    "function-named-like-a-print": (
        f"{_GLOBAL} .func vprintf(.param .u64 p);",
        "mov.u64 d1, kept; { .param .u64 a; st.param.u64 [a], d1; call vprintf, (a); } ret; } "
        ".func vprintf(.param .u64 p) { .reg .b64 d; ld.param.u64 d, [p]; st.global.u32 [d], 7;",
    ),
    "address-in-two-halves": (
        f"{_GLOBAL} .shared .align 8 .b32 s[2];",
        f"mov.u64 d1, kept; mov.b64 {{r1, r2}}, d1; {_TO_SHARED} mov.b64 d2, {{r3, r4}}; st.global.u32 [d2], 7;",
    ),
}  # fmt: skip
"""Declarations and code that all do the same, as the assembler takes them."""


@pytest.fixture(scope="module")
def compile() -> Compile:
    library = nvrtc.load()

    def ptx(body: str, head: str = "") -> str:
        hide = '#define HIDE(p) asm volatile("" : "+l"(p))\n'
        kernel = f'extern "C" __global__ void k(float* o) {{ int i = threadIdx.x; {body} }}'
        options = ["--gpu-architecture=sm_90a", "--std=c++17", *header_options()]
        return library.compile(f"{head}\n{hide}{kernel}", options=options).ptx

    return ptx


def errors(text: str) -> set[str]:
    return {d.code for d in check_device_code(text, "k") if d.severity == "error"}


@pytest.mark.parametrize("name", KEEPS)
def test_memory_that_outlives_a_launch_is_named(name: str, compile: Compile) -> None:
    head, body = KEEPS[name]
    assert errors(compile(body, head)) == {"writable-globals"}


@pytest.mark.parametrize("name", SPELLINGS)
def test_no_spelling_that_the_assembler_takes_hides_a_store(name: str, tmp_path: Path) -> None:
    head, code = SPELLINGS[name]
    registers = ".reg .b64 d<3>; .reg .b32 r<5>; .reg .pred p1; setp.eq.u32 p1, r0, 3;"
    text = (
        f".version 8.3\n.target sm_90a\n.address_size 64\n{head}\n.visible .entry k(.param .u64 p)\n{{ {registers}\n"
        f'{code}\nret; }}\n.file 1 "abc"\n'
    )
    (tmp_path / "k.ptx").write_text(text)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    subprocess.run([tool, "--gpu-name=sm_90a", "k.ptx", "-o", "k.cubin"], cwd=tmp_path, check=True)
    assert errors(text) == {"writable-globals"}


@pytest.mark.parametrize("name", KEEPS_NOTHING)
def test_a_module_whose_memory_is_only_read_is_honest(name: str, compile: Compile) -> None:
    head, body = KEEPS_NOTHING[name]
    assert errors(compile(body, head)) == set()


def test_the_variables_that_no_code_names_are_left_out(compile: Compile) -> None:
    found = variables(compile("o[i] = sinf(o[i + 1]);"), "k")
    assert found in ({"__cudart_i2opi_f": "load"}, {})  # newer compilers need no table for it
    assert variables(compile("o[i] = 1;", "__device__ float never_used[64];"), "k") == {}
    assert variables("nonsense", "k") == {}


def test_waiting_excuses_the_timer_only_where_headers_of_cuda_may_be(compile: Compile) -> None:
    waits = compile(
        'unsigned n; asm volatile("mov.u32 %0, %%globaltimer_lo;" : "=r"(n)); if (n) __nanosleep(1); o[i] = 1;'
    )
    assert errors(waits) == set()
    assert "reads-clock" in {d.code for d in check_device_code(waits, "k", headers=False)}


@pytest.mark.parametrize("code", RULES)
def test_what_no_kernel_needs_has_its_code(code: str, compile: Compile) -> None:
    text = compile(RULES[code])
    severity = "advice" if code in ("sleeps", "reads-place", "keeps-in-cache") else "error"
    assert [(d.code, d.severity) for d in check_device_code(text, "k")] == [(code, severity)]


def test_words_in_comments_and_strings_do_not_count() -> None:
    text = '// mov.u64 %rd1, %clock64;\n/* %gridid */ .file 1 "discard.L2 %clock"\n.entry k() { ret; }'
    assert check_device_code(text, "k") == []


def test_a_dependent_launch_should_wait(compile: Compile) -> None:
    assert [d.code for d in check_device_code(compile("o[i] = 1;"), "k", dependent=True)] == ["does-not-wait"]
    waits = compile('asm volatile("griddepcontrol.wait;" ::: "memory"); o[i] = 1;')
    assert check_device_code(waits, "k", dependent=True) == []
