from __future__ import annotations

import math
from typing import Any

import pytest

from verifier.profile import library
from verifier.profile.library import LibraryCall, TensorView
from verifier.profile.roofline import L2, estimate_library
from verifier.target import get_target

TARGET = get_target("sm_90a")


def view(*shape: int, dtype: str = "float16", storage: int = 0) -> TensorView:
    size = {"float16": 2, "float32": 4, "int64": 8}[dtype]
    return TensorView(shape, dtype, storage, math.prod(shape) * size)


def call(op: str, *args: Any, out: TensorView, **options: Any) -> LibraryCall:
    return LibraryCall(op, options.pop("role", "compute"), args, options.pop("kwargs", {}), (out,), **options)


@pytest.mark.parametrize(
    ("made", "flops"),
    [
        (call("aten::mm", view(8, 16), view(16, 32), out=view(8, 32)), 2 * 8 * 16 * 32),
        (call("aten::addmm", view(32), view(8, 16), view(16, 32), out=view(8, 32)), 2 * 8 * 16 * 32),
        (call("aten::bmm", view(4, 8, 16), view(4, 16, 32), out=view(4, 8, 32)), 4 * 2 * 8 * 16 * 32),
        (call("aten::linear", view(2, 8, 16), view(32, 16), view(32), out=view(2, 8, 32)), 2 * 16 * 16 * 32),
        (call("aten::matmul", view(3, 1, 8, 16), view(5, 16, 4), out=view(3, 5, 8, 4)), 15 * 2 * 8 * 16 * 4),
        (call("aten::einsum", "bij,bjk->bik", [view(2, 3, 4), view(2, 4, 5)], out=view(2, 3, 5)), 240),
        (call("aten::conv2d", view(2, 3, 9, 9), view(8, 3, 2, 2), out=view(2, 8, 8, 8)), 2 * 2 * 64 * 8 * 12),
        (
            call("aten::conv_transpose2d", view(2, 8, 4, 4), view(8, 3, 2, 2), out=view(2, 3, 8, 8)),
            2 * 2 * 16 * 8 * 12,
        ),
        (
            call("aten::scaled_dot_product_attention", *[view(2, 4, 128, 64)] * 3, out=view(2, 4, 128, 64)),
            2 * 2 * 4 * 128 * 128 * 128,
        ),
        (
            call("aten::scaled_dot_product_attention", *[view(2, 4, 128, 64)] * 3, out=view(2, 4, 128, 64),
                 kwargs={"is_causal": True}),
            2 * 4 * 128 * 128 * 128,
        ),
        (call("aten::add.Tensor", view(8, 8), view(8, 8), out=view(8, 8)), 0),
        (call("aten::mm", out=view(8, 8)), 0),
    ],
)  # fmt: skip
def test_flops(made: LibraryCall, flops: int) -> None:
    assert library.flops(made) == flops


def test_flops_agree_with_torch() -> None:
    """torch's own registry on one case of each family; the trace's shapes come from the same operators."""
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    product = call("aten::bmm", view(4, 8, 16), view(4, 16, 32), out=view(4, 8, 32))
    assert library.flops(product) == flop_counter.bmm_flop((4, 8, 16), (4, 16, 32))
    assert library.flops(
        call("aten::conv2d", view(2, 3, 10, 10), view(8, 3, 3, 3), out=view(2, 8, 8, 8))
    ) == flop_counter.conv_flop_count([2, 3, 10, 10], [8, 3, 3, 3], [2, 8, 8, 8])
    shape = (2, 4, 128, 64)
    attention = call("aten::scaled_dot_product_attention", *[view(*shape)] * 3, out=view(*shape))
    assert library.flops(attention) == flop_counter.sdpa_flop_count(shape, shape, shape)


def test_precision_follows_dtype_and_flags() -> None:
    half = call("aten::mm", view(8, 8), view(8, 8), out=view(8, 8))
    single = [view(8, 8, dtype="float32")] * 2
    assert library.operand_class(half) == "fp16"
    assert library.operand_class(call("aten::mm", *single, out=single[0])) == "fp32"
    assert library.operand_class(call("aten::mm", *single, out=single[0], matmul_tf32=True)) == "tf32"
    assert library.operand_class(call("aten::conv2d", *single, out=single[0])) == "tf32"


def test_tf32_makes_a_large_product_faster() -> None:
    n = 4096
    operands = [view(n, n, dtype="float32", storage=i) for i in (1, 2)]
    out = view(n, n, dtype="float32", storage=3)
    slow = estimate_library(call("aten::mm", *operands, out=out), TARGET)
    fast = estimate_library(call("aten::mm", *operands, out=out, matmul_tf32=True), TARGET)
    assert (slow.bound, fast.bound) == ("fp32", "tensor")
    assert slow.seconds > 4 * fast.seconds


def test_elementwise_is_bytes_over_bandwidth() -> None:
    big = view(1 << 28, storage=1)
    done = estimate_library(call("aten::relu", big, out=view(1 << 28, storage=2)), TARGET)
    assert done.bound == "memory"
    assert done.bytes == 2 * big.bytes
    assert done.seconds == pytest.approx(done.bytes / 4.3e12, rel=0.2)


def test_allocation_is_free_and_small_steps_are_launch_bound() -> None:
    assert estimate_library(call("aten::empty.memory_format", out=view(8), role="alloc"), TARGET).seconds == 0
    assert estimate_library(call("aten::relu", view(8), out=view(8)), TARGET).bound == "launch"


def test_what_an_earlier_step_left_in_l2_is_not_read_from_dram() -> None:
    l2 = L2(TARGET)
    small, other = view(1 << 20, storage=1), view(1 << 20, storage=2)
    first = estimate_library(call("aten::relu", small, out=other), TARGET, l2)
    second = estimate_library(call("aten::relu", other, out=view(1 << 20, storage=3)), TARGET, l2)
    assert first.bytes == 2 * small.bytes
    assert second.bytes == small.bytes
    huge = view(1 << 28, storage=4)
    for storage in range(5, 45):
        l2.touch(storage, 1 << 20)
    l2.touch(huge.storage, huge.bytes)
    assert l2.cold(1)
    assert l2.cold(4)
