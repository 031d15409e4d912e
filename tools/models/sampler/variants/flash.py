"""One pass over keys and values with an online softmax (Dao et al., FlashAttention-2)."""

from __future__ import annotations

from tools.models.sampler import pieces
from tools.models.sampler.build import Build, Program, fill
from tools.models.sampler.tuning import decorator

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
    $descriptors

    row_max = tl.full([BLOCK_M], float("-inf"), $acc_type)
    row_sum = tl.zeros([BLOCK_M], $acc_type)
    acc = tl.zeros([BLOCK_M, D], $acc_type)

    $loops

    $normalise
    $store
"""

DESCRIPTORS = """
k_tiles = tl.make_tensor_descriptor(K, shape=[S, D], strides=[stride_ks, 1], block_shape=[BLOCK_N, D])
v_tiles = tl.make_tensor_descriptor(V, shape=[S, D], strides=[stride_vs, 1], block_shape=[BLOCK_N, D])
"""

FORWARD = """
$contiguous
B, H, S, D = $q.shape
$output
grid = $grid
attention_kernel[grid](
    $q, $k, $v, out,
    $strides
    $arguments
    $options
)
return out
"""

CONTIGUOUS = """
$k, $v = $k.contiguous(), $v.contiguous()  # a descriptor needs a last stride of 1
triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device=$q.device))
"""


def write(b: Build) -> Program:
    q, k, v = b.task.inputs[:3]
    grid = pieces.grid(b, 'meta["BLOCK_M"]' if b.tuned else str(b.genome.block_m))
    names = {"q": q, "k": k, "v": v}
    body = {
        **names,
        "contiguous": fill(CONTIGUOUS, names) if pieces.described(b) else "",
        "output": pieces.output(b),
        "grid": f"lambda meta: {grid}" if b.tuned else grid,
        "strides": pieces.stride_arguments(b, q, k, v, "out"),
        "arguments": pieces.arguments(b),
        "options": pieces.launch_options(b),
    }
    return Program("one pass over keys and values with an online softmax", (kernel(b),), fill(FORWARD, body))


def kernel(b: Build) -> str:
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
            "descriptors": DESCRIPTORS if pieces.described(b) else "",
            "acc_type": pieces.accumulator(b),
            "loops": _loops(b),
            "normalise": pieces.normalise(b),
            "store": pieces.store_out(b),
        },
    )


def _loops(b: Build) -> str:
    before, begin, end = pieces.key_range(b)
    if b.genome.loops == "one":
        return f"{before}\n{pieces.loop(b, begin, end)}"
    bound = "row_tile * BLOCK_M" if b.task.causal else end
    inner = pieces.loop(b, begin, "whole", tail=False, pairs=False)
    rest = pieces.loop(b, "whole", end)
    return f"{before}\nwhole = {bound} // BLOCK_N * BLOCK_N  # tiles before this need no mask\n{inner}\n{rest}"
