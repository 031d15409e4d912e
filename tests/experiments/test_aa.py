"""The simulated GPU has the noise that it claims, and the tables come out the same for the same seed."""

import math

import numpy as np
import pytest

from experiments import aa
from verifier.sequence import block_location
from verifier.timing import Decision


def source(gain: float = 0.0, **noise: float) -> aa.Source:
    base = {"jitter": 0.0, "second": 0.0, "address": 0.0}
    return aa.Source(aa.Noise(**{**base, **noise}), gain, np.random.default_rng(1))


def test_a_silent_machine_shows_the_gain() -> None:
    assert block_location(source(0.02)(0).pairs) == pytest.approx(0.02)


def test_running_second_costs() -> None:
    pairs = source(second=0.1)(0).pairs
    assert [round(math.log(base / candidate), 9) for candidate, base in pairs[:4]] == [0.1, -0.1, 0.1, -0.1]


@pytest.mark.parametrize(("kind", "moves"), [("address", True), ("held", False)])
def test_offsets_of_addresses(kind: str, moves: bool) -> None:
    gpu = source(**{kind: 0.004})
    offsets = [block_location(gpu(i).pairs) for i in range(200)]
    assert max(map(abs, offsets)) <= 0.008
    assert bool(np.std(offsets) > 0.002) is moves


def test_offsets_that_change_hands() -> None:
    gpu = source(exchanged=0.004)
    offsets = [block_location(gpu(i).pairs) for i in range(4)]
    assert offsets[0] == pytest.approx(-offsets[1])
    assert offsets[:2] == pytest.approx(offsets[2:])
    assert offsets[0] != 0.0


def test_whoever_begins_pays_for_a_slow_first_call() -> None:
    gpu = source(begin=0.04, long=True)
    found = [block_location(gpu(i).pairs) for i in range(400)]
    begun = [aa.candidate_first(i, gpu.coins) for i in range(400)]
    assert sum(begun) == 200
    assert all(-0.006 < x <= 0 if first else 0 <= x < 0.006 for x, first in zip(found, begun, strict=True))
    assert abs(np.mean(found)) < 0.0003


@pytest.mark.parametrize("name", aa.LONG)
def test_the_intervals_of_long_calls_hold_the_truth(name: str) -> None:
    """Where the candidate always began, 6% of the confirmations after moved memory held it."""
    decided = aa.decisions(aa.LONG[name], 0.0, [1, 0], 200)
    confirmed = aa.confirmations(aa.LONG[name], 0.0, [1, 4], decided)
    assert min(aa.covered(decided, 0.0), aa.covered(confirmed, 0.0)) >= 0.95
    assert sum(t.decision is Decision.FASTER for t in decided) <= 4


def test_autoregression_has_its_spread_and_its_memory() -> None:
    rng = np.random.default_rng(1)
    paths = aa.autoregression(rng.standard_normal((400, 300)), rng.normal(0, 2.0, 400), 0.9, 2.0)
    assert paths.std() == pytest.approx(2.0, rel=0.05)
    assert np.corrcoef(paths[:, :-1].ravel(), paths[:, 1:].ravel())[0, 1] == pytest.approx(0.9, abs=0.02)


def test_dips_show_in_the_clock_and_in_the_times() -> None:
    gpu = source(dips=0.02)
    blocks = [gpu(i) for i in range(200)]
    clocks = [block.clock_hz or 0.0 for block in blocks]
    assert min(clocks) < 1.7e9 < 1.9e9 < max(clocks)
    assert max(c for block in blocks for c, _ in block.pairs) > 1.2e-4


def test_the_naive_interval_claims_what_the_timer_does_not() -> None:
    noise = aa.REGIMES["autocorrelated"]
    naive = [aa.naive_claims(gpu, 0.0) for gpu in aa.sources(noise, 0.0, [1], 20)]
    assert sum(naive) >= 5
    assert aa.false_claims("autocorrelated", noise, 1, 20)[1] == "0.0%"


def test_rows_repeat_for_a_seed() -> None:
    noise = aa.REGIMES["quiet"]
    assert aa.precision("quiet", noise, 3, 20) == aa.precision("quiet", noise, 3, 20)
    assert aa.power("quiet", noise, 3, 10)[1] == "100.0%"
    assert aa.false_claims("long calls", aa.LONG["long calls"], 3, 4)[1:6] == ["0.0%", "0.0%", "0.0%", "100.0%", "8"]
