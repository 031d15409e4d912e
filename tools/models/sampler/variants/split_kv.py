"""The keys are split over programs; each leaves an unnormalised sum, and a second kernel joins them (flash
decoding).
"""

from __future__ import annotations

from tools.models.sampler import pieces
from tools.models.sampler.build import Build, Program, fill
from tools.models.sampler.tuning import decorator

PARTIAL = """
$decorator
@triton.jit
def partial_kernel(
    Q, K, V, Sums, Maxima, Partial,
    $strides
    $sizes
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    $program
    split = tl.program_id(2)
    $offsets
    $load_q
    $setup

    chunk = tl.cdiv(tl.cdiv(S, SPLITS), BLOCK_N) * BLOCK_N
    $range

    row_max = tl.full([BLOCK_M], float("-inf"), $acc_type)
    row_sum = tl.zeros([BLOCK_M], $acc_type)
    acc = tl.zeros([BLOCK_M, D], $acc_type)

    $loop

    slot = (pair * SPLITS + split).to(tl.int64) * S + rows
    tl.store(Maxima + slot, row_max$mask1)
    tl.store(Sums + slot, row_sum$mask1)
    tl.store(Partial + slot[:, None] * D + dims[None, :], acc.to(tl.float32)$mask2)
"""

COMBINE = """
@triton.jit
def combine_kernel(
    Sums, Maxima, Partial, Out,
    $strides
    H, S,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    $program
    $offsets
    inside = rows < S
    first = (pair * SPLITS).to(tl.int64) * S + rows

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for split in range(0, SPLITS):
        row_max = tl.maximum(row_max, tl.load(Maxima + first + split * S, mask=inside, other=0.0))

    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for split in range(0, SPLITS):
        slot = first + split * S
        weight = $exp(tl.load(Maxima + slot, mask=inside, other=0.0) - row_max)
        row_sum += weight * tl.load(Sums + slot, mask=inside, other=1.0)
        part = tl.load(Partial + slot[:, None] * D + dims[None, :], mask=inside[:, None], other=0.0)
        acc += weight[:, None] * part

    $normalise
    $store
"""

FORWARD = """
B, H, S, D = $q.shape
$output
sums = torch.empty((B, H, $splits, S), device=$q.device, dtype=torch.float32)
maxima = torch.empty_like(sums)
partial = torch.empty((B, H, $splits, S, D), device=$q.device, dtype=torch.float32)
grid = $grid
partial_kernel[grid](
    $q, $k, $v, sums, maxima, partial,
    $strides
    $arguments
    SPLITS=$splits,
    $options
)
combine_kernel[$combine_grid](
    sums, maxima, partial, out,
    *out.stride(),
    H, S,
    D=D, SPLITS=$splits, BLOCK_M=32, num_warps=4,
)
return out
"""


def write(b: Build) -> Program:
    q, k, v = b.task.inputs[:3]
    splits = str(b.genome.splits)
    grid = pieces.grid(b, 'meta["BLOCK_M"]' if b.tuned else str(b.genome.block_m), splits)
    body = {
        "q": q,
        "k": k,
        "v": v,
        "splits": splits,
        "output": pieces.output(b),
        "grid": f"lambda meta: {grid}" if b.tuned else grid,
        "combine_grid": pieces.grid(b, "32"),
        "strides": pieces.stride_arguments(b, q, k, v),
        "arguments": pieces.arguments(b),
        "options": pieces.launch_options(b),
    }
    return Program(
        f"keys split over {splits} programs, joined by a second kernel",
        (_partial(b), _combine(b)),
        fill(FORWARD, body),
    )


def _partial(b: Build) -> str:
    before, begin, end = _range(b)
    return fill(
        PARTIAL,
        {
            "decorator": decorator(b),
            "strides": pieces.strides("qkv"),
            "sizes": pieces.sizes(b),
            "program": pieces.program(b),
            "offsets": pieces.offsets(Q="q", K="k", V="v"),
            "load_q": pieces.load_q(b),
            "setup": pieces.setup(b),
            "range": before,
            "acc_type": pieces.accumulator(b),
            "loop": pieces.loop(b, begin, end),
            "mask1": "" if b.slip("unguarded_store") else ", mask=rows < S",
            "mask2": "" if b.slip("unguarded_store") else ", mask=rows[:, None] < S",
        },
    )


def _range(b: Build) -> tuple[str, str, str]:
    """The chunk of this split, cut to the keys that the rows can see."""
    before, begin, end = pieces.key_range(b)
    low = "split * chunk" if begin == "0" else f"tl.maximum(split * chunk, {begin})"
    high = f"tl.minimum((split + 1) * chunk, {end})"
    return f"{before}\nfirst_key = {low}\nlast_key = {high}", "first_key", "last_key"


def _combine(b: Build) -> str:
    return fill(
        COMBINE,
        {
            "strides": pieces.strides("o"),
            "program": pieces.program(b),
            "offsets": pieces.offsets(Out="o"),
            "exp": b.exp,
            "normalise": pieces.normalise(b),
            "store": pieces.store_out(b),
        },
    )
