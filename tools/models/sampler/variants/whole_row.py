"""A program holds the scores of its rows against every key at once. Short, exact and only for short
sequences.
"""

from __future__ import annotations

from tools.models.sampler import pieces
from tools.models.sampler.build import Build, Program, fill

KERNEL = """
@triton.jit
def attention_kernel(
    Q, K, V, Out,
    $strides
    $sizes
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    $program
    cols = tl.arange(0, BLOCK_S)
    $offsets
    $load_q
    $setup

    $load_k
    $scores
    p = $exp(scores - tl.max(scores, 1)[:, None])
    row_sum = tl.sum(p, 1)

    $load_v
    acc = tl.dot(p.to(v.dtype), v$precision)
    $normalise
    $store
"""

FORWARD = """
B, H, S, D = $q.shape
$output
grid = $grid
attention_kernel[grid](
    $q, $k, $v, out,
    $strides
    $arguments
    BLOCK_M=$block_m, BLOCK_S=max(16, triton.next_power_of_2(S)),
    $options
)
return out
"""


def write(b: Build) -> Program:
    q, k, v = b.task.inputs[:3]
    body = {
        "q": q,
        "k": k,
        "v": v,
        "output": pieces.output(b),
        "grid": pieces.grid(b, str(b.genome.block_m)),
        "strides": pieces.stride_arguments(b, q, k, v, "out"),
        "arguments": pieces.arguments(b),
        "block_m": str(b.genome.block_m),
        "options": pieces.launch_options(b, blocks=False),
    }
    return Program("whole rows of scores in registers", (_kernel(b),), fill(FORWARD, body))


def _kernel(b: Build) -> str:
    return fill(
        KERNEL,
        {
            "strides": pieces.strides("qkvo"),
            "sizes": pieces.sizes(b),
            "program": pieces.program(b),
            "offsets": pieces.offsets(Q="q", K="k", V="v", Out="o"),
            "load_q": pieces.load_q(b),
            "setup": pieces.setup(b),
            "load_k": pieces.load_k(b),
            "scores": pieces.scores(b),
            "exp": b.exp,
            "load_v": pieces.load_v(b),
            "precision": b.precision,
            "normalise": pieces.normalise(b),
            "store": pieces.store_out(b),
        },
    )
