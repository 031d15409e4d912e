"""Two passes over the keys: the first finds each row's maximum and sum, the second forms the output already
normalised.

The scores are computed twice; in exchange the accumulator is never rescaled.
"""

from __future__ import annotations

from tools.models.sampler import pieces
from tools.models.sampler.build import Build, Program, fill
from tools.models.sampler.tuning import decorator
from tools.models.sampler.variants import flash

KERNEL = """
$decorator
@triton.jit
def attention_kernel(
    Q, K, V, Out,
    $strides
    $sizes
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    $program
    $offsets
    $load_q
    $setup
    $range

    # first pass: statistics of the softmax
    row_max = tl.full([BLOCK_M], float("-inf"), $acc_type)
    row_sum = tl.zeros([BLOCK_M], $acc_type)
    $statistics

    # second pass: weighted sum of the values
    acc = tl.zeros([BLOCK_M, D], $acc_type)
    $values

    $store
"""

STATISTICS = """
$header
    cols = start + tl.arange(0, BLOCK_N)
    $load_k
    $scores
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    $sum
    row_max = new_max$narrow
"""

VALUES = """
$header
    cols = start + tl.arange(0, BLOCK_N)
    $load_k
    $scores
    p = $exp(scores - row_max[:, None])$normalise
    $load_v
    $accumulate
"""


def write(b: Build) -> Program:
    single = flash.write(b)
    return Program("two passes over the keys, statistics first", (_kernel(b),), single.forward)


def _kernel(b: Build) -> str:
    before, begin, end = pieces.key_range(b)
    return fill(
        KERNEL,
        {
            "decorator": decorator(b),
            "strides": pieces.strides("qkvo"),
            "sizes": pieces.sizes(b),
            "program": pieces.program(b),
            "offsets": pieces.offsets(Q="q", K="k", V="v", Out="o"),
            "load_q": pieces.load_q(b),
            "setup": pieces.setup(b),
            "range": before,
            "statistics": fill(STATISTICS, _shared(b, begin, end) | {"sum": _sum(b), "narrow": pieces.narrowed(b)}),
            "acc_type": pieces.accumulator(b),
            "values": fill(VALUES, _shared(b, begin, end) | _weighted(b)),
            "store": pieces.store_out(b),
        },
    )


def _shared(b: Build, begin: str, end: str) -> dict[str, str]:
    header = f"for start in range({begin}, {end}, BLOCK_N):"
    return {"header": header, "load_k": pieces.load_k(b), "scores": pieces.scores(b), "exp": b.exp}


def _sum(b: Build) -> str:
    old = "row_sum" if b.slip("no_rescale") else f"row_sum * {b.exp}(row_max - new_max)"
    value = f"{old} + tl.sum({b.exp}(scores - new_max[:, None]), 1)"
    return f"row_sum = {pieces.narrowed(b, value)}"


def _weighted(b: Build) -> dict[str, str]:
    return {
        "normalise": "" if b.slip("no_normalise") else " / row_sum[:, None]",
        "load_v": pieces.load_v(b),
        "accumulate": pieces.accumulate(b, rescale=False),
    }
