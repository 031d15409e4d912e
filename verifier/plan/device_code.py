"""The device code of a CUDA source that was written for nvcc and torch's headers, by itself.

`extract` keeps what NVRTC can compile (kernels, device functions, types, constants, CUDA's own headers) and blanks
out host functions, bindings and headers of torch and the standard library; a short prelude stands for what kernels
use of those. Line numbers stay. It splits text by braces and does not parse C++: what it drops is remembered, so
that an error that a dropped name explains is not held against the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_QUALIFIER = re.compile(r"\b__(?:global|device|constant|shared|managed)__\b")
_HOST_WORDS = re.compile(
    r"\b(?:torch|at|c10|py|pybind11|thrust|TORCH_\w+|PYBIND11_\w+|AT_\w+|C10_\w+|cublas\w*|cudnn\w*|cudaStream_t"
    r"|cutlass|std::(?:vector|string|tuple|optional|map|unordered_map|function|cout|cerr))\b"
)
_KEPT_INCLUDE = re.compile(
    r'#\s*include\s*[<"](?:cuda_fp(?:16|8|4|6)\.h|cuda_bf16\.h|mma\.h|cooperative_groups[\w/]*\.h|cuda_pipeline\w*\.h'
    r"|cuda/\w[\w/]*|cub/(?:block|warp|thread)/\w+\.cuh|math_constants\.h|cuda_awbarrier\w*\.h|nv/target)[>\"]"
)
_INCLUDE = re.compile(r'#\s*include\s*[<"]([^>"]+)[>"]')
_SCOPE = re.compile(r'(?:inline\s+)?namespace\b[\w\s:]*|extern\s*"[^"]*"\s*|extern\s+\s*')
_TYPE = re.compile(r"^(?:template\s*<.*?>\s*)?(?:struct|class|union|enum|typedef|using|static_assert)\b", re.S)
_NUMBER = (
    r"(?:unsigned|signed|int|long|short|char|bool|float|double|size_t|u?int\d+_t|auto|half|__half|float[234]|int[234])"
)
_CONSTANT = re.compile(rf"^(?:(?:static|const|constexpr|inline)\s+)+{_NUMBER}\b", re.S)
_NAME = re.compile(r"\b[A-Za-z_]\w*\b")
_INSTANCE = re.compile(r"\b([A-Za-z_]\w*(?:::\w+)*\s*<[^<>;(){}]*>)\s*<<<")
_NARROW_TYPE = re.compile(r"\b(?:__)?(?:nv_)?(?:half2?|bfloat16\w*|half2float|float2half\w*)\b")
_NARROW = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"
"""torch's headers bring these along."""
_IGNORED = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(?P<tag>[^()\\\s]{0,16})\(.*?\)(?P=tag)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S
)

PRELUDE = """#line 1 "prelude"
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t; typedef long long intptr_t; typedef unsigned int uint; typedef long ptrdiff_t;
#define INT8_MAX 127
#define INT32_MAX 2147483647
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define UINT32_MAX 4294967295u
#define LLONG_MAX 9223372036854775807ll
#define INT64_MAX 9223372036854775807ll
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define DBL_MAX 1.7976931348623158e+308
#define DBL_MIN 2.2250738585072014e-308
#define DBL_EPSILON 2.2204460492503131e-16
#define INFINITY __int_as_float(0x7f800000)
#define HUGE_VALF __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define M_PI 3.14159265358979323846
#define M_PI_2 1.57079632679489661923
#define M_PI_4 0.78539816339744830962
#define M_1_PI 0.31830988618379067154
#define M_2_PI 0.63661977236758134308
#define M_E 2.7182818284590452354
#define M_LN2 0.69314718055994530942
#define M_LN10 2.30258509299404568402
#define M_LOG2E 1.44269504088896340736
#define M_SQRT2 1.41421356237309504880
#define M_SQRT1_2 0.70710678118654752440
#define M_2_SQRTPI 1.12837916709551257390
namespace std {
using ::abs; using ::acos; using ::asin; using ::atan; using ::atan2; using ::ceil; using ::cos; using ::cosh;
using ::erf; using ::erfc; using ::exp; using ::exp2; using ::expm1; using ::fabs; using ::floor; using ::fma;
using ::fmax; using ::fmin; using ::fmod; using ::isfinite; using ::isinf; using ::isnan; using ::log; using ::log10;
using ::log1p; using ::log2; using ::pow; using ::rint; using ::round; using ::rsqrt; using ::sin; using ::sinh;
using ::sqrt; using ::tan; using ::tanh; using ::trunc;
template <typename T> __device__ constexpr const T& max(const T& a, const T& b) { return a < b ? b : a; }
template <typename T> __device__ constexpr const T& min(const T& a, const T& b) { return b < a ? b : a; }
template <typename T> __device__ void swap(T& a, T& b) { T c = a; a = b; b = c; }
template <typename T> struct numeric_limits;
template <> struct numeric_limits<float> {
  __device__ static constexpr float max() { return FLT_MAX; }
  __device__ static constexpr float lowest() { return -FLT_MAX; }
  __device__ static constexpr float min() { return FLT_MIN; }
  __device__ static constexpr float epsilon() { return FLT_EPSILON; }
  __device__ static float infinity() { return INFINITY; }
  __device__ static float quiet_NaN() { return NAN; }
};
template <> struct numeric_limits<double> {
  __device__ static constexpr double max() { return DBL_MAX; }
  __device__ static constexpr double lowest() { return -DBL_MAX; }
  __device__ static constexpr double min() { return DBL_MIN; }
  __device__ static constexpr double epsilon() { return DBL_EPSILON; }
  __device__ static double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }
};
template <> struct numeric_limits<int> {
  __device__ static constexpr int max() { return INT_MAX; }
  __device__ static constexpr int lowest() { return INT_MIN; }
  __device__ static constexpr int min() { return INT_MIN; }
};
template <> struct numeric_limits<long long> {
  __device__ static constexpr long long max() { return LLONG_MAX; }
  __device__ static constexpr long long lowest() { return -LLONG_MAX - 1; }
  __device__ static constexpr long long min() { return -LLONG_MAX - 1; }
};
template <typename A, typename B> struct is_same { static constexpr bool value = false; };
template <typename A> struct is_same<A, A> { static constexpr bool value = true; };
template <typename A, typename B> constexpr bool is_same_v = is_same<A, B>::value;
template <bool C, typename A, typename B> struct conditional { using type = A; };
template <typename A, typename B> struct conditional<false, A, B> { using type = B; };
template <bool C, typename A, typename B> using conditional_t = typename conditional<C, A, B>::type;
}
"""
"""What kernels use of the standard headers, for a compiler that has none of them."""


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """`text` is ready for NVRTC; the lines of the source keep their numbers under the name given to `extract`.
    `dropped` are the names that were left out with host code, `headers` the files."""

    text: str
    kernels: int
    dropped: frozenset[str]
    headers: frozenset[str]
    instances: frozenset[str]
    """Kernels with template arguments as the host code launches them; torch's `scalar_t` is float."""

    @property
    def empty(self) -> bool:
        """Whether there is no kernel in it."""
        return self.kernels == 0


def extract(source: str, name: str = "cuda_source") -> DeviceCode:
    """The device part of `source`."""
    masked = _IGNORED.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), source)
    kept, dropped, headers = list(source), set[str](), set[str]()
    for start, end in _unwanted(source, masked, 0, len(source)):
        dropped |= set(_NAME.findall(masked[start:end]))
        headers |= set(_INCLUDE.findall(source[start:end]))
        kept[start:end] = re.sub(r"[^\r\n]", " ", source[start:end])
    narrow = _NARROW if _NARROW_TYPE.search(masked) and any("/" in h for h in headers) else ""
    text = f'{narrow}{PRELUDE}#line 1 "{name}"\n{"".join(kept)}'
    launched = {re.sub(r"\bscalar_t\b", "float", name) for name in _INSTANCE.findall(masked)}
    return DeviceCode(
        text, masked.count("__global__"), frozenset(dropped), frozenset(headers), frozenset(launched)
    )  # fmt: skip


def _unwanted(source: str, masked: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans to blank out between `start` and `end`, which lie at one nesting level."""
    at = start
    while at < end:
        if masked[at].isspace() or masked[at] in ";}":
            at += 1
        elif masked[at] == "#":
            stop = _directive_end(masked, at, end)
            if _INCLUDE.match(source, at, stop) and not _KEPT_INCLUDE.match(source, at, stop):
                yield at, stop
            at = stop
        else:
            brace, stop = _declaration(masked, at, end)
            head = masked[at : brace if brace >= 0 else stop].strip()
            if brace >= 0 and _SCOPE.fullmatch(source[at:brace].strip() + " "):
                yield from _unwanted(source, masked, brace + 1, stop - 1)
            elif not _wanted(head, masked[at:stop], brace >= 0):
                yield at, stop
            at = stop


def _directive_end(masked: str, at: int, end: int) -> int:
    while True:
        line = masked.find("\n", at, end)
        if line < 0:
            return end
        if masked[at:line].rstrip().endswith("\\"):
            at = line + 1
            continue
        return line


def _declaration(masked: str, at: int, end: int) -> tuple[int, int]:
    """(position of the body's brace or -1, end) of the declaration that starts at `at`."""
    depth, brace = 0, -1
    i = at
    while i < end:
        c = masked[i]
        if c in "([{":
            if c == "{" and depth == 0 and brace < 0:
                brace = i
            depth += 1
        elif c in ")]}":
            depth -= 1
            if depth <= 0 and c == "}" and brace >= 0:
                tail = masked[i + 1 : end].lstrip()
                if not tail.startswith(";") and (
                    masked[at:brace].rstrip().endswith(("=", ",")) or _is_type(masked, at, brace)
                ):
                    stop = masked.find(";", i, end)
                    return brace, stop + 1 if stop >= 0 else end
                return brace, i + 1
        elif c == ";" and depth == 0:
            return brace, i + 1
        i += 1
    return brace, end


def _is_type(masked: str, at: int, brace: int) -> bool:
    return bool(_TYPE.match(masked[at:brace].strip())) and "(" not in masked[at:brace]


def _wanted(head: str, whole: str, has_body: bool) -> bool:
    """Whether a declaration at namespace level belongs to the device."""
    if _QUALIFIER.search(head):
        return True
    if _HOST_WORDS.search(whole):
        return False
    if _TYPE.match(head):
        return True
    if has_body and "(" in head:
        return "constexpr" in head
    return bool(_CONSTANT.match(head))
