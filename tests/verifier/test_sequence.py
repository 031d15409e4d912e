"""The formulas by themselves: symmetry, scale, known values, coverage at every look."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.sequence import block_location, sequence_half_width, stein_blocks, stein_half_width, t_quantile

seconds = st.floats(1e-7, 1e3)
pairs = st.lists(st.tuples(seconds, seconds), min_size=2, max_size=24)
ratios = st.lists(st.floats(-1, 1), min_size=4, max_size=40)


@given(pairs)
def test_exchanging_the_contestants_negates_the_location(block: list[tuple[float, float]]) -> None:
    swapped = [(base, candidate) for candidate, base in block]
    assert block_location(swapped) == pytest.approx(-block_location(block), abs=1e-12)


@given(pairs, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(block: list[tuple[float, float]], unit: float) -> None:
    scaled = [(unit * candidate, unit * base) for candidate, base in block]
    assert block_location(scaled) == pytest.approx(block_location(block), abs=1e-9)


@given(st.floats(-0.5, 0.5), st.floats(-0.05, 0.05), st.floats(-0.1, 0.1))
def test_drift_and_place_cancel(gain: float, drift: float, second: float) -> None:
    block = []
    for i in range(7):
        place = (0, 1) if i % 2 == 0 else (1, 0)
        candidate, base = (math.exp(drift * (2 * i + p) + second * p) for p in place)
        block.append((candidate, base * math.exp(gain)))
    assert block_location(block) == pytest.approx(gain, abs=1e-9)


def test_one_wild_launch_in_each_order_changes_nothing() -> None:
    block = [(1.0, 1.1)] * 8
    block[2], block[5] = (50.0, 1.1), (1.0, 70.0)
    assert block_location(block) == pytest.approx(math.log(1.1))


def test_the_sequence_half_width_inverts_the_bayes_factor() -> None:
    values, alpha, scale = [0.1, 0.3, -0.2, 0.4, 0.15, 0.2], 0.05, 3.0
    half, n = sequence_half_width(values, alpha, scale), len(values)
    centre = fmean(values)
    variance = sum((x - centre) ** 2 for x in values) / (n - 1)
    t2, r = half**2 * n / variance, 1 + n * scale**2
    factor = r**-0.5 * ((1 + t2 / (n - 1)) / (1 + t2 / (n - 1) / r)) ** (n / 2)
    assert factor == pytest.approx(1 / alpha)


@given(ratios, st.floats(0.1, 10))
def test_the_sequence_half_width_scales_with_its_numbers(values: list[float], factor: float) -> None:
    half = sequence_half_width(values, 0.05, 3.0)
    assert sequence_half_width([factor * x for x in values], 0.05, 3.0) == pytest.approx(factor * half, abs=1e-9)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_blocks_give_no_interval(count: int) -> None:
    assert sequence_half_width([0.1] * count, 0.05, 3.0) == math.inf
    assert stein_half_width([0.1] * count, 16, 0.05) == math.inf


def test_the_sequence_holds_at_every_look() -> None:
    rng, missed, runs = random.Random(7), 0, 400
    for _ in range(runs):
        values = [rng.gauss(0, 1) for _ in range(40)]
        missed += any(abs(fmean(values[:n])) > sequence_half_width(values[:n], 0.05, 3.0) for n in range(4, 41))
    assert missed / runs <= 0.05


def test_stein_covers_and_keeps_its_goal() -> None:
    rng, missed, runs = random.Random(7), 0, 400
    for _ in range(runs):
        values = [rng.gauss(0, 1) for _ in range(16)]
        values += [rng.gauss(0, 1) for _ in range(stein_blocks(values, 0.4, 0.05) - 16)]
        half = stein_half_width(values, 16, 0.05)
        assert half <= 0.4
        missed += abs(fmean(values)) > half
    assert missed / runs <= 0.05


def test_serial_correlation_widens_the_interval() -> None:
    zigzag = [(-1.0) ** i for i in range(16)]
    slow = [1.0] * 8 + [-1.0] * 8
    assert stein_half_width(slow, 16, 0.05) > 2 * stein_half_width(zigzag, 16, 0.05)


@pytest.mark.parametrize(("freedom", "value"), [(3, 3.18245), (7, 2.36462), (15, 2.13145), (1000, 1.96234)])
def test_quantiles_of_t(freedom: int, value: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(value, rel=2e-3)
