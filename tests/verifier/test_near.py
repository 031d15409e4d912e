"""What is near PyTorch's own result is right, whatever the float64 reference says."""

import math

import pytest
import torch
from torch import Tensor

from verifier.near import LEAST, SHARE, Near, all_same, same_bytes
from verifier.numerics import FLOORS, compare, within_floor
from verifier.problem import Precision

ROWS, COLUMNS = 512, 256


def draw(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64) * scale
    return made * torch.logspace(-2, 1, ROWS, dtype=torch.float64)[:, None] + 0.3 * seed


def spread(t: Tensor) -> float:
    return float((t - t.mean()).norm())


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32, Precision.FP16])
@pytest.mark.parametrize("own", [0.0, 0.2, 0.9, 3.0, 40.0], ids="own {}".format)
@pytest.mark.parametrize("where", ["everywhere", "a row", "an element", "against the reference"])
def test_what_is_near_passes_in_full(precision: Precision, own: float, where: str) -> None:
    """`own`: PyTorch's error over the floor. The output is as far from PyTorch's result as counts as near."""
    reference, floor = draw(1), FLOORS[precision]
    error = draw(2)
    native = (reference + error * (own * floor * spread(reference) / float(error.norm()))).float()
    near = Near.of(native)
    assert near is not None
    away = {
        "everywhere": draw(3),
        "a row": torch.zeros_like(reference).index_fill_(0, torch.tensor([7]), 1.0),
        "an element": torch.zeros_like(reference).index_put_(
            (torch.tensor(9), torch.tensor(3)), torch.tensor(1.0).double()
        ),
        "against the reference": native.double() - reference + 1e-12 * draw(4),
    }[where]
    accepted = 0
    for size in (1e-3, 0.1, 0.3, 0.5, 0.8, 0.99, 2.0):
        step = away * (size * SHARE * floor * spread(native.double()) / float(away.norm()))
        output = (native.double() + step).float()
        found = near.compare(output, precision)
        if found is not None:
            accepted += 1
            assert compare(output, reference, native, precision).passed
            assert found.error is not None
            assert found.error <= SHARE * floor
    assert accepted or where != "everywhere"


def test_what_is_not_near_is_left_to_the_full_comparison() -> None:
    native = draw(1).float()
    near = Near.of(native)
    assert near is not None
    for wrong in (native * 1.02, native.roll(1, 0), torch.full_like(native, math.nan), native.half(), native[:-1], 3):
        assert near.compare(wrong, Precision.FP32) is None
    one = native.clone()
    one[3, 4] = math.inf
    assert near.compare(one, Precision.FP16) is None
    zero_row = native.clone()
    zero_row[0] = 0.0
    assert near.compare(zero_row, Precision.FP16) is None


def test_nothing_is_near_what_is_small_constant_or_not_finite() -> None:
    assert Near.of(torch.ones(ROWS, COLUMNS) + 1e-4 * torch.randn(ROWS, COLUMNS)) is None
    assert Near.of(torch.randn(LEAST - 1)) is None
    assert Near.of(torch.arange(LEAST)) is None
    broken = torch.randn(ROWS, COLUMNS)
    broken[5, 5] = math.nan
    assert Near.of(broken) is None


def test_bytes_of_any_length_and_place() -> None:
    base = torch.arange(5003, dtype=torch.uint8)
    for start, count in ((0, 5003), (3, 4999), (8, 4101), (1, 0)):
        part = base[start : start + count]
        assert same_bytes(part, part.clone())
        for at in {0, count // 2, count - 1} if count else ():
            other = part.clone()
            other[at] += 1
            assert not same_bytes(part, other)
            assert all_same([(part, other), (part, part.clone()), (other, part)]) == [False, True, False]
    assert not same_bytes(torch.zeros(3), -torch.zeros(3))
    assert same_bytes(torch.eye(40).t()[1:], torch.eye(40)[1:].clone())


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32, Precision.FP16])
@pytest.mark.parametrize("size", [1e-9, 0.3, 0.9, 1.0, 1.2, 30.0])
def test_what_is_within_the_floors_passes_in_full(precision: Precision, size: float) -> None:
    reference, error = draw(1), draw(2)
    output = (reference + error * (size * FLOORS[precision] * spread(reference) / float(error.norm()))).float()
    found = within_floor(output, reference, reference.float(), precision)
    full = compare(output, reference, reference.float(), precision)
    assert (found is not None) is full.passed
    assert found is None or (found.error, found.row_error) == (full.error, full.row_error)


def test_what_is_not_finite_or_overflows_is_not_within_the_floors() -> None:
    reference = draw(1)
    for value in (math.nan, math.inf):
        output = reference.float()
        output[2, 2] = value
        assert within_floor(output, reference, reference.float(), Precision.FP16) is None
    large = reference * 1e5
    assert within_floor(large.half(), large, large.half(), Precision.FP16) is None
    assert within_floor(torch.ones(3), torch.ones(4).double(), torch.ones(3), Precision.FP16) is None
