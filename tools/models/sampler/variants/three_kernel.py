"""The textbook way: a kernel for the scores, one for the softmax of each row, one for the product with V.

The matrix of scores goes to global memory in fp32, which costs traffic and B * H * S * S * 4 bytes.
"""

from __future__ import annotations

from tools.models.sampler import pieces
from tools.models.sampler.build import Build, Program, fill

SCORES = """
@triton.jit
def scores_kernel(
    Q, K, Scores,
    $strides
    $sizes
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    $program
    cols = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    $offsets
    $load_q
    $setup

    $load_k
    $scores
    Scores += pair.to(tl.int64) * S * S
    tl.store(Scores + rows[:, None] * S + cols[None, :], scores$mask)
"""

SOFTMAX = """
@triton.jit
def softmax_kernel(Scores, S, BLOCK_S: tl.constexpr):
    cols = tl.arange(0, BLOCK_S)
    row = Scores + tl.program_id(0).to(tl.int64) * S
    scores = tl.load(row + cols, mask=cols < S, other=float("-inf"))
    p = $exp(scores - tl.max(scores, 0))
    tl.store(row + cols, p$normalise, mask=cols < S)
"""

VALUES = """
@triton.jit
def values_kernel(
    Scores, V, Out,
    $strides
    H, S,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    $program
    $offsets
    Scores += pair.to(tl.int64) * S * S

    acc = tl.zeros([BLOCK_M, D], $acc_type)
    for start in range(0, S, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        inside = (rows[:, None] < S) & (cols[None, :] < S)
        p = tl.load(Scores + rows[:, None] * S + cols[None, :], mask=inside, other=0.0)
        $load_v
        $accumulate

    $store
"""

FORWARD = """
B, H, S, D = $q.shape
$output
scores = torch.empty((B * H, S, S), device=$q.device, dtype=torch.float32)
scores_kernel[$scores_grid](
    $q, $k, scores,
    $scores_strides
    $arguments
    $options
)
softmax_kernel[(B * H * S,)](scores, S, BLOCK_S=triton.next_power_of_2(S), num_warps=4)
values_kernel[$values_grid](
    scores, $v, out,
    $values_strides
    H, S,
    $options
)
return out
"""


def write(b: Build) -> Program:
    q, k, v = b.task.inputs[:3]
    block_m, block_n = str(b.genome.block_m), str(b.genome.block_n)
    body = {
        "q": q,
        "k": k,
        "v": v,
        "output": pieces.output(b),
        "scores_grid": pieces.grid(b, block_m, f"triton.cdiv(S, {block_n})"),
        "values_grid": pieces.grid(b, block_m),
        "scores_strides": pieces.stride_arguments(b, q, k),
        "values_strides": pieces.stride_arguments(b, v, "out"),
        "arguments": pieces.arguments(b),
        "options": pieces.launch_options(b),
    }
    return Program(
        "scores, softmax and values in three kernels",
        (_scores(b), _softmax(b), _values(b)),
        fill(FORWARD, body),
    )


def _scores(b: Build) -> str:
    return fill(
        SCORES,
        {
            "strides": pieces.strides("qk"),
            "sizes": pieces.sizes(b),
            "program": pieces.program(b),
            "offsets": pieces.offsets(Q="q", K="k"),
            "load_q": pieces.load_q(b),
            "setup": pieces.setup(b),
            "load_k": pieces.load_k(b),
            "scores": pieces.scores(b, tail=False),
            "mask": ", mask=(rows[:, None] < S) & (cols[None, :] < S)",
        },
    )


def _softmax(b: Build) -> str:
    return fill(SOFTMAX, {"exp": b.exp, "normalise": "" if b.slip("no_normalise") else " / tl.sum(p, 0)"})


def _values(b: Build) -> str:
    return fill(
        VALUES,
        {
            "strides": pieces.strides("vo"),
            "program": pieces.program(b),
            "offsets": pieces.offsets(V="v", Out="o"),
            "acc_type": pieces.accumulator(b),
            "load_v": pieces.load_v(b),
            "accumulate": pieces.accumulate(b, rescale=False),
            "store": pieces.store_out(b),
        },
    )
