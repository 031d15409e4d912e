"""The comparer in both directions: wrong outputs that must not pass, honest ones that must."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from verifier import measure as measuring
from verifier import numerics
from verifier.interpreter.precise import round_operand
from verifier.numerics import compare
from verifier.problem import Precision

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
CLASS = {FP32: Precision.TF32, FP16: Precision.FP16, BF16: Precision.BF16}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def judge(output: Tensor, reference: Tensor, precision: Precision | None = None) -> numerics.Comparison:
    """Compares with a native result that is the reference rounded once."""
    return compare(output, reference, reference.to(output.dtype), precision or CLASS[output.dtype])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# wrong outputs

GOOD = seeded(256, 256)


def _tile(t: Tensor) -> Tensor:
    t[64:72, 128:136] = 0
    return t


def _one(t: Tensor) -> Tensor:
    t[17, 30] = 0.0 if abs(t[17, 30]) > 1 else 2.0
    return t


def _row(t: Tensor) -> Tensor:
    t[-1] = 0
    return t


def _swap(t: Tensor) -> Tensor:
    t[[3, 4]] = t[[4, 3]]
    return t


def _unwritten(t: Tensor) -> Tensor:
    t[250:] = math.nan
    return t


def _shifted(t: Tensor) -> Tensor:
    return t.roll(1, -1)


def _first_row_only(t: Tensor) -> Tensor:
    t[1:] = t[:1]
    return t


MISTAKES: list[Callable[[Tensor], Tensor]] = [
    _tile, _one, _row, _swap, _unwritten, _shifted, _first_row_only,
    torch.zeros_like, torch.neg, lambda t: t.T.contiguous(), lambda t: t * 1.05,
    lambda t: torch.full_like(t, t.mean().item()), lambda t: t + 0.1,
]  # fmt: skip
NAMES = ["tile", "one element", "last row", "swapped rows", "unwritten", "shifted", "first row only", "zeros",
         "sign", "transposed", "scale", "constant", "offset"]  # fmt: skip


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize("mistake", MISTAKES, ids=NAMES)
def test_a_mistake_is_found(mistake: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    assert judge(GOOD.to(dtype), GOOD).passed
    assert not judge(mistake(GOOD.to(dtype).clone()), GOOD).passed


@pytest.mark.parametrize("mistake", MISTAKES[:4], ids=NAMES[:4])
@pytest.mark.parametrize("loud", [1e4, 1e-4])
def test_a_mistake_is_found_beside_a_much_larger_or_smaller_row(
    mistake: Callable[[Tensor], Tensor], loud: float
) -> None:  # fmt: skip
    reference = GOOD.clone()
    reference[200] *= loud
    assert judge(reference.float(), reference).passed
    assert not judge(mistake(reference.float().clone()), reference).passed


def test_kernelbench_inputs_do_not_hide_a_constant_or_fp8() -> None:
    """With inputs in [0, 1) allclose at 1e-2 accepts fp8 and half of the elements of a constant."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(256, 1024, generator=generator), torch.rand(1024, 256, generator=generator))
    reference = a.double() @ b.double()
    fp8 = round_operand(a, Precision.FP8) @ round_operand(b, Precision.FP8)
    assert torch.allclose(fp8, reference.float(), rtol=1e-2, atol=1e-2)
    assert not judge(fp8, reference, Precision.BF16).passed
    assert not judge(torch.full_like(fp8, reference.mean().item()), reference, Precision.BF16).passed


@pytest.mark.parametrize("reference", [torch.tensor(3.0), torch.full((64, 64), 0.7), torch.zeros(64, 64)])
def test_scalars_and_constants(reference: Tensor) -> None:
    r = reference.double()
    assert judge(reference, r).passed
    assert judge(reference + 1e-6, r).passed
    assert not judge(reference + 1e-2, r).passed
    assert not judge(reference + math.nan, r).passed


def test_a_mean_over_one_element_too_few_is_found() -> None:
    values = seeded(4096).abs()
    assert judge(values.float().mean(), values.mean(), Precision.TF32).passed
    assert not judge(values.float().sum() / 4095, values.mean(), Precision.TF32).passed


def test_shape_dtype_and_type() -> None:
    r = seeded(4, 4)
    native = r.float()
    assert "shape" in compare(native.reshape(2, 8), r, native, Precision.TF32).reason
    assert "dtype" in compare(native.half(), r, native, Precision.TF32).reason
    assert "not a tensor" in compare(3.0, r, native, Precision.TF32).reason
    assert compare(torch.empty(0, 3), torch.empty(0, 3).double(), torch.empty(0, 3), Precision.TF32).passed


@pytest.mark.parametrize(
    ("wanted", "got", "passed"),
    [
        (math.nan, math.nan, True), (math.inf, math.inf, True), (-math.inf, math.inf, False),
        (math.nan, 0.0, False), (0.0, math.nan, False), (math.inf, 1e30, False), (0.0, math.inf, False),
    ],
)  # fmt: skip
def test_non_finite_pattern(wanted: float, got: float, passed: bool) -> None:
    reference = seeded(32, 32)
    output = reference.float()
    reference[3, 4], output[3, 4] = wanted, got
    assert judge(output, reference).passed is passed


def test_garbage_beside_an_expected_nan_is_found() -> None:
    reference = seeded(32, 32)
    reference[3] = math.nan
    output = reference.float()
    output[9, 9] += 3
    assert not judge(output, reference).passed


# honest outputs


@pytest.mark.parametrize("precision", [Precision.TF32, Precision.FP16, Precision.BF16, Precision.FP8])
@pytest.mark.parametrize("uniform", [False, True])
def test_operands_of_the_contract_pass_whatever_the_inner_dimension(precision: Precision, uniform: bool) -> None:
    for inner in (16, 300, 2048):
        generator = torch.Generator().manual_seed(inner)
        make = torch.rand if uniform else torch.randn
        a, b = make(96, inner, generator=generator), make(inner, 80, generator=generator)
        reference = a.double() @ b.double()
        # another order of summation, operands rounded to the contract's class
        parts = [round_operand(x, precision) @ round_operand(y, precision)
                 for x, y in zip(a.split(64, 1), b.split(64, 0), strict=True)]  # fmt: skip
        whole = round_operand(a, precision) @ round_operand(b, precision)
        found = compare(sum(parts), reference, a @ b, precision, yardstick=whole)
        assert found.passed, (inner, found)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP8])
def test_a_class_below_the_contract_fails(precision: Precision) -> None:
    a, b = seeded(96, 300).float(), seeded(300, 80, seed=1).float()
    output = round_operand(a, precision) @ round_operand(b, precision)
    assert not compare(output, a.double() @ b.double(), a @ b, Precision.TF32).passed


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_rows_that_are_constant_zero_or_tiny_do_not_divide_by_nothing(dtype: torch.dtype) -> None:
    reference = seeded(128, 64)
    reference[0] = 0
    reference[1] = 5.0
    reference[2] *= 1e-6
    reference[3] = 5.0 + 1e-4 * reference[3]
    noise = 1 + 0.3 * torch.finfo(dtype).eps * seeded(128, 64, seed=3)
    output = (reference * noise).to(dtype)
    output[0] = 1e-7
    assert judge(output, reference).passed


def test_softmax_of_heavy_tailed_scores_in_half_precision() -> None:
    scores = seeded(64, 256) / seeded(64, 256, seed=1).abs().clamp_min(0.02) * 3
    reference = torch.softmax(scores.half().double(), -1)
    fused = torch.softmax(scores.half().float(), -1).half()
    assert judge(fused, reference).passed


def test_a_softmax_over_nearly_equal_values_may_round_as_fast_exponentials_do() -> None:
    x = seeded(64, 8192) * (seeded(64, 8192, seed=1) > 1.3) / 256
    right, wrong = torch.softmax(x, 1), torch.softmax(0.99 * x, 1)
    rounded = right * (1 + 8e-7 * seeded(64, 1, seed=2))
    assert judge(rounded.float(), right, Precision.FP32).passed
    assert not judge(wrong.float(), right, Precision.FP32).passed


def test_overflow_in_fp16_is_the_same_in_both() -> None:
    reference = seeded(64, 64) * 4e4
    assert not torch.isfinite(reference.half()).all()
    assert judge(reference.half(), reference).passed
    edge = reference.clone()
    edge[0, 0] = 65519.0  # the last value below the rounding edge of fp16
    output = edge.half()
    output[0, 0] = math.inf
    assert judge(output, edge).passed
    output[0, 0] = -math.inf
    assert not judge(output, edge).passed


def test_an_overflow_on_the_way_may_or_may_not_happen() -> None:
    reference = seeded(64, 64)
    native = reference.half()
    native[5, 5] = math.inf
    for value in (math.inf, reference[5, 5].item()):
        output = reference.half()
        output[5, 5] = value
        assert compare(output, reference, native, Precision.FP16).passed
    output[5, 5] = math.nan
    assert not compare(output, reference, native, Precision.FP16).passed


def test_a_coarse_draw_is_named() -> None:
    reference = seeded(32, 32)
    assert numerics.coarse(reference, reference.float()) == ""
    assert "own error" in numerics.coarse(reference, (reference + 0.3 * seeded(32, 32, seed=2)).half())
    overflowing = reference.half()
    overflowing[:4] = math.inf
    assert "overflows" in numerics.coarse(reference, overflowing)


# parts of an output


def test_only_stored_elements_count_and_the_message_names_their_place() -> None:
    stored = torch.zeros(256, 256, dtype=torch.bool)
    stored[32:64, 64:96] = stored[-5:, -40:] = True

    def part(output: Tensor) -> numerics.Comparison:
        return compare(output, GOOD, GOOD.float(), Precision.TF32, stored=stored)

    elsewhere = torch.where(stored, GOOD.float(), math.nan)
    assert part(elsewhere).passed
    wrong = elsewhere.clone()
    wrong[40, 70] += 2
    assert "at [40, 70]" in part(wrong).reason
    wrong[40, 70] = math.inf
    assert "+inf instead of a finite value in 1 of" in part(wrong).reason
    assert "[40, 70]" in part(wrong).reason
    assert not part(elsewhere * 1.05).passed


def test_a_constant_on_a_small_part_is_measured_from_the_mean_of_the_whole() -> None:
    reference = seeded(64, 64)
    reference[0] = 7.0
    stored = torch.zeros(64, 64, dtype=torch.bool)
    stored[0, :20] = True
    right = reference.float()
    assert compare(right, reference, right, Precision.TF32, stored=stored).passed
    assert not compare(right * 1.01, reference, right, Precision.TF32, stored=stored).passed


def test_integers_outside_the_stored_part_do_not_count() -> None:
    expected = torch.arange(64).reshape(8, 8)
    stored = expected < 8
    assert compare(expected * stored, expected, expected, Precision.TF32, stored=stored).passed
    assert not compare(expected + 1, expected, expected, Precision.TF32, stored=stored).passed


# integers


def test_integers_are_exact_and_arg_reductions_may_break_ties_either_way() -> None:
    x = torch.tensor([[1.0, 5.0, 5.0], [7.0, 2.0, 7.0]])
    first, other, wrong = torch.tensor([1, 0]), torch.tensor([2, 2]), torch.tensor([0, 0])

    def passed(output: Tensor, inputs: list[Tensor]) -> bool:
        return compare(output, first, first, Precision.TF32, inputs=inputs).passed

    assert passed(first, [])
    assert passed(other, [x])
    assert passed(other, [torch.zeros(2), x])
    assert not passed(other, [])
    assert not passed(wrong, [x])
    assert not passed(torch.tensor([3, 0]), [x])
    assert not passed(torch.tensor([-1, 0]), [x])


def test_equal_values_that_are_no_extremes_are_not_ties() -> None:
    x = torch.tensor([[1.0, 1.0, 5.0, 0.0]])
    assert not compare(torch.tensor([1]), torch.tensor([0]), torch.tensor([0]), Precision.TF32, inputs=[x]).passed


def test_indices_of_the_largest_few_may_break_ties_either_way_and_take_nothing_twice() -> None:
    x = torch.tensor([[5.0, 1.0, 5.0, 5.0, 4.0], [0.0, 2.0, 2.0, 1.0, 9.0]])
    expected = torch.topk(x, 3).indices

    def passed(output: list[list[int]], expected: Tensor = expected) -> bool:
        return compare(torch.tensor(output), expected, expected, Precision.TF32, inputs=[x]).passed

    assert passed([[3, 0, 2], [4, 2, 1]])
    assert not passed([[3, 0, 0], [4, 2, 1]])
    assert not passed([[3, 0, 4], [4, 2, 1]])
    assert not passed([[3, 0, 2], [2, 4, 1]])
    assert passed([[2, 3, 0, 4, 1], [4, 1, 2, 3, 0]], torch.sort(x, descending=True).indices)
    assert not passed([[1, 1, 1], [0, 0, 0]], torch.tensor([[1, 1, 1], [3, 3, 3]]))


def test_whole_numbers_made_of_rounded_ones_differ_where_pytorchs_own_do() -> None:
    reference = torch.arange(4096)
    native, mine, far = reference.clone(), reference.clone(), reference.clone()
    native[17] += 1
    mine[100:104] += 1
    far[100:105] += 1
    assert compare(mine, reference, native, Precision.TF32).passed
    assert not compare(far, reference, native, Precision.TF32).passed
    assert not compare(mine, reference, reference, Precision.TF32).passed


def test_booleans() -> None:
    reference = seeded(64, 64) > 0
    flipped = reference.clone()
    flipped[0, :2] = ~flipped[0, :2]
    assert not compare(flipped, reference, reference, Precision.TF32).passed
    assert compare(flipped, reference, flipped, Precision.TF32).passed
    assert not compare(~reference, reference, flipped, Precision.TF32).passed


def test_a_bool_that_nothing_wrote_is_no_true() -> None:
    reference = seeded(64, 64) > 0
    output = reference.to(torch.uint8)
    assert compare(output.view(torch.bool), reference, reference, Precision.TF32).passed
    output[reference] = 0xAA
    found = compare(output.view(torch.bool), reference, reference, Precision.TF32)
    assert not found.passed
    assert "170 instead of 1" in found.reason


def test_allclose_is_reported_and_decides_nothing() -> None:
    reference = seeded(64, 64)
    noisy = (reference + 5e-4 * seeded(64, 64, seed=1)).float()
    found = judge(noisy, reference)
    assert found.passed
    assert found.allclose is False


@pytest.mark.parametrize("shape", [(300, 40), (40,), (7, 3, 5), (33, 100)])
def test_parts_give_what_the_whole_gives(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    reference = seeded(*shape).double()
    output = (reference + 1e-3 * seeded(*shape, seed=2)).float()
    output.view(-1)[11] += 0.5
    output.view(-1)[17] = torch.inf
    whole = judge(output, reference)
    errors = measuring.measure(output.nan_to_num(posinf=0.0), reference)
    monkeypatch.setattr(measuring, "PART", 64)
    assert judge(output, reference) == whole
    parts = measuring.measure(output.nan_to_num(posinf=0.0), reference)
    assert parts.worst == errors.worst
    assert (parts.error, parts.row, parts.spot) == pytest.approx((errors.error, errors.row, errors.spot), rel=1e-12)
