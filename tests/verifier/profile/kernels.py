"""Sources of the TTIR in `ttir/`. To make it again with the Triton at hand: `python kernels.py FOLDER`."""

import sys
from pathlib import Path

import triton
import triton.language as tl


@triton.jit
def matmul(a, b, c, M, N, K, sam, sak, sbk, sbn, scm, scn, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    pid = tl.program_id(0)
    nn = tl.cdiv(N, BN)
    pm = pid // nn
    pn = pid % nn
    rm = pm * BM + tl.arange(0, BM)
    rn = pn * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    pa = a + rm[:, None] * sam + rk[None, :] * sak
    pb = b + rk[:, None] * sbk + rn[None, :] * sbn
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, tl.cdiv(K, BK)):
        x = tl.load(pa, mask=rk[None, :] < K - k * BK, other=0.0)
        y = tl.load(pb, mask=rk[:, None] < K - k * BK, other=0.0)
        acc = tl.dot(x, y, acc)
        pa += BK * sak
        pb += BK * sbk
    tl.store(
        c + rm[:, None] * scm + rn[None, :] * scn,
        acc.to(tl.float16),
        mask=(rm[:, None] < M) & (rn[None, :] < N),
    )


@triton.jit
def softmax(x, y, n_cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    v = tl.load(x + row * n_cols + c, mask=c < n_cols, other=-float("inf"))
    v = v - tl.max(v, axis=0)
    e = tl.exp(v)
    tl.store(y + row * n_cols + c, e / tl.sum(e, axis=0), mask=c < n_cols)


@triton.jit
def attention(q, k, v, o, scale, T, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr):
    m = tl.program_id(0)
    h = tl.program_id(1)
    rm = m * BM + tl.arange(0, BM)
    rn = tl.arange(0, BN)
    rd = tl.arange(0, D)
    base = h.to(tl.int64) * T * D
    qq = tl.load(q + base + rm[:, None] * D + rd[None, :], mask=rm[:, None] < T, other=0.0)
    mi = tl.full((BM,), -float("inf"), tl.float32)
    li = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    hi = tl.minimum((m + 1) * BM, T) if CAUSAL else T
    for n in range(0, hi, BN):
        kk = tl.load(k + base + (n + rn)[:, None] * D + rd[None, :], mask=(n + rn)[:, None] < T, other=0.0)
        s = tl.dot(qq, tl.trans(kk)) * scale
        if CAUSAL:
            s = tl.where(rm[:, None] >= (n + rn)[None, :], s, -float("inf"))
        mn = tl.maximum(mi, tl.max(s, 1))
        p = tl.exp2(s - mn[:, None])
        a = tl.exp2(mi - mn)
        li = li * a + tl.sum(p, 1)
        acc = acc * a[:, None]
        vv = tl.load(v + base + (n + rn)[:, None] * D + rd[None, :], mask=(n + rn)[:, None] < T, other=0.0)
        acc = tl.dot(p.to(vv.dtype), vv, acc)
        mi = mn
    acc = acc / li[:, None]
    tl.store(o + base + rm[:, None] * D + rd[None, :], acc.to(tl.float16), mask=rm[:, None] < T)


@triton.jit
def control(x, y, n, m, B: tl.constexpr):
    pid = tl.program_id(0)
    off = pid * B + tl.arange(0, B)
    s = tl.zeros((B,), tl.float32)
    i = 0
    while i < n:
        s += tl.load(x + off + i * B)
        i += 2
    if pid < m:
        s = tl.exp(s)
        tl.store(y + off, s)
    else:
        tl.atomic_add(y + off, s)
    if pid == 3:
        return
    tl.store(y + off, s + 1)


@triton.jit
def data_dep(x, idx, y, B: tl.constexpr):
    pid = tl.program_id(0)
    n = tl.load(idx + pid)
    off = tl.arange(0, B)
    s = tl.zeros((B,), tl.float32)
    for i in range(0, n):
        s += tl.load(x + i * B + off)
    tl.store(y + pid * B + off, s)


@triton.jit
def persistent(a, y, n_tiles, B: tl.constexpr):
    for t in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0)):
        off = t * B + tl.arange(0, B)
        tl.store(y + off, tl.sqrt(tl.load(a + off)))


@triton.jit
def tma(x, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    d = tl.make_tensor_descriptor(x, [M, N], [N, 1], [BM, BN])
    e = tl.make_tensor_descriptor(y, [M, N], [N, 1], [BM, BN])
    pid = tl.program_id(0)
    for j in range(0, N, BN):
        e.store([pid * BM, j], d.load([pid * BM, j]) * 2)


@triton.jit
def block_pointer(x, y, M, N, BM: tl.constexpr, BN: tl.constexpr):
    pid = tl.program_id(0)
    p = tl.make_block_ptr(x, (M, N), (N, 1), (pid * BM, 0), (BM, BN), (1, 0))
    q = tl.make_block_ptr(y, (M, N), (N, 1), (pid * BM, 0), (BM, BN), (1, 0))
    for _ in range(0, N, BN):
        v = tl.load(p, boundary_check=(0, 1))
        tl.store(q, tl.exp(v), boundary_check=(0, 1))
        p = tl.advance(p, (0, BN))
        q = tl.advance(q, (0, BN))


SIZES = ["M", "N", "K", "sam", "sak", "sbk", "sbn", "scm", "scn"]
MATMUL = {**dict.fromkeys("abc", "*fp16"), **dict.fromkeys(SIZES, "i32")}
CASES = {
    "matmul": (MATMUL, {"BM": 128, "BN": 128, "BK": 64}),
    "softmax": ({"x": "*fp32", "y": "*fp32", "n_cols": "i32"}, {"BLOCK": 1024}),
    "attention": (
        {**dict.fromkeys("qkvo", "*fp16"), "scale": "fp32", "T": "i32"},
        {"D": 64, "BM": 128, "BN": 64, "CAUSAL": True},
    ),
    "control": ({"x": "*fp32", "y": "*fp32", "n": "i32", "m": "i32"}, {"B": 256}),
    "data_dep": ({"x": "*fp32", "idx": "*i32", "y": "*fp32"}, {"B": 256}),
    "persistent": ({"a": "*fp32", "y": "*fp32", "n_tiles": "i32"}, {"B": 256}),
    "tma": ({"x": "*fp32", "y": "*fp32", "M": "i32", "N": "i32"}, {"BM": 16, "BN": 64}),
    "block_pointer": ({"x": "*fp32", "y": "*fp32", "M": "i32", "N": "i32"}, {"BM": 16, "BN": 64}),
}


def ttir(name: str) -> str:
    """TTIR of one case; locations name this file without its folder."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants = CASES[name]
    source = ASTSource(
        globals()[name],
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs=constants,
    )
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"]
    library = str(Path(triton.__file__).parent.parent)
    return text.replace(f"{Path(__file__).parent}/", "").replace(f"{library}/", "")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if case != "block_pointer" or hasattr(tl, "advance"):  # Triton 3.9 has no block pointers
            (folder / f"{case}.ttir").write_text(ttir(case))
